//! Steps as a Mermaid flowchart.

use super::{Asked, Most, Step, Way};
use std::fmt::Write as _;

/// Characters of a label.
const MAX_LABEL: usize = 80;

/// A flowchart from start to result.
pub(super) fn draw(steps: &[Step]) -> String {
    let mut chart = Chart { out: String::from("flowchart TD\n"), edges: String::new(), next: 0, depth: 1 };
    let start = chart.node("([", "start", "])");
    let (mut ends, mut ways) = (vec![(start, String::new())], Ways::default());
    ends = chart.sequence(steps, ends, &mut ways);
    let result = chart.node("([", "result", "])");
    ends.extend([ways.returns, ways.breaks, ways.continues].concat());
    chart.join(&ends, &result);
    chart.out + &chart.edges
}

/// Where edges begin, each with what it says.
type Ends = Vec<(String, String)>;

/// What leaves a part of the chart elsewhere than at its end.
#[derive(Default)]
struct Ways {
    breaks: Ends,
    continues: Ends,
    returns: Ends,
}

struct Chart {
    out: String,
    /// Edges stand behind all nodes, so that none draws a node into a subgraph.
    edges: String,
    next: u32,
    depth: usize,
}

impl Chart {
    fn name(&mut self) -> String {
        self.next += 1;
        format!("s{}", self.next)
    }

    fn line(&mut self, text: &str) {
        let _ = writeln!(self.out, "{}{text}", "  ".repeat(self.depth));
    }

    fn node(&mut self, open: &str, label: &str, close: &str) -> String {
        let name = self.name();
        self.line(&format!("{name}{open}\"{}\"{close}", escaped(label)));
        name
    }

    fn join(&mut self, ends: &Ends, to: &str) {
        for (from, label) in ends {
            let label = if label.is_empty() { String::new() } else { format!("|\"{}\"|", escaped(label)) };
            let _ = writeln!(self.edges, "  {from} -->{label} {to}");
        }
    }

    fn sequence(&mut self, steps: &[Step], mut ends: Ends, ways: &mut Ways) -> Ends {
        for step in steps {
            // Nothing stands behind a way out.
            if ends.is_empty() {
                break;
            }
            ends = self.step(step, ends, ways);
        }
        ends
    }

    fn step(&mut self, step: &Step, ends: Ends, ways: &mut Ways) -> Ends {
        match step {
            Step::Ask { asked, what, .. } => {
                let who = match asked {
                    Asked::Agent => "ask an agent",
                    Asked::Everyone => "ask every agent",
                    Asked::Model => "ask a language model",
                    Asked::Pattern => "run a pattern",
                    Asked::Sleep => "wait",
                };
                let label = what.as_ref().map_or(who.to_string(), |what| format!("{who}: {what}"));
                let node = self.node("[", &label, "]");
                self.join(&ends, &node);
                vec![(node, String::new())]
            }
            Step::Branch { condition, arms, .. } => {
                let node = self.node("{", condition, "}");
                self.join(&ends, &node);
                let arms = arms
                    .iter()
                    .flat_map(|arm| self.sequence(&arm.steps, vec![(node.clone(), arm.when.clone())], ways));
                arms.collect()
            }
            Step::Loop { over, times, steps, .. } => {
                let label = match times {
                    Most::Of(times) => format!("{over} · {times}"),
                    Most::Unbounded(_) => over.clone(),
                };
                let node = self.node("{{", &label, "}}");
                self.join(&ends, &node);
                let mut own = Ways::default();
                let mut back = self.sequence(steps, vec![(node.clone(), "next".to_string())], &mut own);
                back.append(&mut own.continues);
                self.join(&back, &node);
                ways.returns.append(&mut own.returns);
                [vec![(node, "done".to_string())], own.breaks].concat()
            }
            Step::Together { how, steps, .. } => {
                let name = self.name();
                self.line(&format!("subgraph {name}[\"{}\"]", escaped(&format!("at once: {how}"))));
                self.depth += 1;
                let ends = self.sequence(steps, ends, ways);
                self.depth -= 1;
                self.line("end");
                ends
            }
            Step::Function { steps, .. } => {
                let mut own = Ways::default();
                let ends = self.sequence(steps, ends, &mut own);
                [ends, own.returns].concat()
            }
            Step::Leave { way, .. } => {
                match way {
                    Way::Break => ways.breaks.extend(ends),
                    Way::Continue => ways.continues.extend(ends),
                    Way::Return => ways.returns.extend(ends),
                }
                vec![]
            }
        }
    }
}

/// A label's text: what Mermaid or a browser would read as more than text is written as its number.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    for (at, c) in words.chars().filter(|c| !c.is_control()).enumerate() {
        if at == MAX_LABEL {
            out.push('…');
            break;
        }
        match c {
            '"' | '#' | '&' | '<' | '>' | '`' | '\\' | '[' | ']' | '{' | '}' | '(' | ')' | '|' | ';'
            | '%' | '*' | '_' | '~' | '@' => {
                let _ = write!(out, "#{};", c as u32);
            }
            c => out.push(c),
        }
    }
    out
}
