//! The charts that `parallax pattern explain` draws are Mermaid: read back here by the part of its grammar that they use.

use std::collections::BTreeSet;

use parallax_control_plane::Library;
use parallax_prism::{CompileOptions, explain::explain};

/// Reads a chart, line by line, and gives the number of its edges.
fn read(chart: &str) -> usize {
    let mut lines = chart.lines();
    assert_eq!(lines.next(), Some("flowchart TD"));
    let (mut nodes, mut edges, mut open) = (BTreeSet::new(), vec![], 0);
    for line in lines.map(str::trim) {
        if let Some((from, rest)) = line.split_once(" -->") {
            let (label, to) = match rest.strip_prefix('|') {
                Some(rest) => rest.split_once("| ").expect(line),
                None => ("\"\"", rest.strip_prefix(' ').expect(line)),
            };
            quoted(label);
            edges.push((from.to_owned(), to.to_owned()));
        } else if line == "end" {
            open -= 1;
            assert!(open >= 0, "{line}");
        } else {
            let node = line.strip_prefix("subgraph ").inspect(|_| open += 1).unwrap_or(line);
            let at = node.find(|c: char| !c.is_ascii_alphanumeric()).expect(line);
            let (name, shape) = node.split_at(at);
            let shapes = [("([", "])"), ("{{", "}}"), ("[", "]"), ("{", "}")];
            let (begin, end) = shapes.into_iter().find(|(begin, _)| shape.starts_with(begin)).expect(line);
            quoted(shape.strip_prefix(begin).and_then(|rest| rest.strip_suffix(end)).expect(line));
            assert!(nodes.insert(name.to_owned()), "{name} stands twice");
        }
    }
    assert_eq!(open, 0, "a subgraph is open");
    for name in edges.iter().flat_map(|(from, to)| [from, to]) {
        assert!(nodes.contains(name), "an edge leads to {name}, which is nowhere");
    }
    edges.len()
}

/// Within its quotes a label holds nothing that Mermaid reads.
fn quoted(label: &str) {
    let text = label.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).expect(label);
    for (at, part) in text.split('#').enumerate() {
        let (code, rest) = if at == 0 { ("0", part) } else { part.split_once(';').expect(label) };
        assert!(code.parse::<u32>().is_ok(), "{label}");
        assert!(!rest.contains(['"', '<', '>', '`', '|', '[', ']', '{', '}']), "{label}");
    }
}

#[test]
fn every_pattern_has_a_chart_that_can_be_read() {
    for pattern in Library::open(None).unwrap().list() {
        let name = &pattern.header.name;
        let said = explain(&pattern.script, &CompileOptions::default()).unwrap();
        assert!(read(&said.mermaid()) > 1 && !said.steps.is_empty(), "{name}: {}", said.mermaid());
    }
}
