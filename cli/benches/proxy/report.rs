//! What came of it: medians over the rounds, ratios to Envoy within each, and the goals.

use std::{collections::BTreeMap, time::Duration};

use crate::{Scene, targets::Mode};

/// One measurement by name: calls/s; p50, p99, p99.9 in µs; CPU of the proxy, the agents and the client in µs per call;
/// RSS in MiB.
pub type Figures = BTreeMap<&'static str, f64>;

const OURS: &str = "Parallax";
const BASE: &str = "Envoy";

#[derive(Default)]
pub struct Report {
    /// In the order in which targets were measured; per target one figure per round.
    rounds: BTreeMap<(usize, Scene), Vec<(&'static str, Vec<Figures>)>>,
    held: Vec<(Mode, &'static str, f64)>,
}

impl Report {
    pub fn add(&mut self, mode: Mode, scene: Scene, target: &'static str, figures: Figures) {
        let targets = self.rounds.entry((mode as usize, scene)).or_default();
        match targets.iter_mut().find(|(name, _)| *name == target) {
            Some((_, rounds)) => rounds.push(figures),
            None => targets.push((target, vec![figures])),
        }
    }

    pub fn held(&mut self, mode: Mode, target: &'static str, resident: f64) {
        self.held.push((mode, target, resident));
    }

    fn of(&self, mode: Mode, scene: Scene, target: &str) -> Option<&Vec<Figures>> {
        let targets = self.rounds.get(&(mode as usize, scene))?;
        targets.iter().find(|(name, _)| *name == target).map(|(_, rounds)| rounds)
    }

    fn median(&self, mode: Mode, scene: Scene, target: &str, figure: &str) -> Option<f64> {
        median(self.of(mode, scene, target)?.iter().map(|figures| figures[figure]))
    }

    /// The median of a target's figure over the base's in the same round.
    fn ratio(&self, mode: Mode, scene: Scene, target: &str, base: &str, figure: &str) -> Option<f64> {
        let pairs = self.of(mode, scene, target)?.iter().zip(self.of(mode, scene, base)?);
        median(pairs.map(|(own, base)| own[figure] / base[figure]))
    }

    pub fn print(&self, rounds: usize, lasting: Duration) {
        println!(
            "{rounds} rounds of {lasting:?} each; medians, and in brackets the ratio to {BASE} in the same round."
        );
        println!(
            "p50, p99, p99.9 and CPU in µs (user and system, per call or per streamed message); RSS in MiB."
        );
        for mode in Mode::BOTH {
            for scene in Scene::ALL {
                self.table(mode, scene);
            }
        }
        println!("\n{} streams open:", crate::STREAMS);
        for (mode, target, resident) in &self.held {
            println!("  {target:<20}{:<18}{resident:>7.1} MiB", mode.name());
        }
        self.goals();
    }

    fn table(&self, mode: Mode, scene: Scene) {
        let Some(targets) = self.rounds.get(&(mode as usize, scene)) else { return };
        let what = match scene {
            Scene::Saturated => format!("{} calls of 1 KiB in flight", crate::IN_FLIGHT),
            Scene::Paced => format!("{} calls of 1 KiB a second, from when each was due", crate::RATE),
            Scene::Alone => "one call of 1 KiB at a time".to_owned(),
            Scene::Large => "16 calls of 64 KiB in flight".to_owned(),
            Scene::Streamed => format!("16 calls in flight with {} messages of 1 KiB each", crate::MESSAGES),
        };
        println!("\n{}: {what}", mode.name());
        print!("  {:<20}", "");
        let columns = [
            ("calls/s", true),
            ("p50", true),
            ("p99", true),
            ("p99.9", false),
            ("CPU", true),
            ("RSS", false),
        ];
        for (figure, compared) in columns {
            print!("{figure:>width$}", width = if compared { 15 } else { 9 });
        }
        println!("{:>9}{:>9}", "agents", "client");
        for (target, _) in targets {
            print!("  {target:<20}");
            let shown = |figure| self.median(mode, scene, target, figure).unwrap_or(f64::NAN);
            for (figure, compared) in columns {
                let value = shown(figure);
                let digits = usize::from(value < 1000.0);
                match self.ratio(mode, scene, target, BASE, figure) {
                    Some(ratio) if compared => print!("{value:>8.digits$} ({ratio:>4.2})"),
                    _ if compared => print!("{value:>8.digits$}       "),
                    _ => print!("{value:>9.digits$}"),
                }
            }
            println!("{:>9.1}{:>9.1}", shown("agents"), shown("client"));
        }
    }

    fn goals(&self) {
        let to_base = |mode, scene, figure| self.ratio(mode, scene, OURS, BASE, figure);
        let held = self.held.iter().filter(|(_, target, _)| *target == OURS).map(|(.., resident)| *resident);
        let streamed = |mode| {
            let streamed = self.of(mode, Scene::Streamed, OURS)?.iter();
            median(streamed.zip(self.of(mode, Scene::Saturated, OURS)?).map(|(s, u)| s["CPU"] / u["CPU"]))
        };
        let one = |figure| self.ratio(Mode::H2c, Scene::Saturated, OURS, "Parallax with 1 worker", figure);
        use {Mode::*, Scene::*};
        let goals = [
            ("CPU per call to Envoy's, h2c", to_base(H2c, Saturated, "CPU"), Limit::AtMost(0.45)),
            ("CPU per call to Envoy's, mTLS", to_base(Mtls, Saturated, "CPU"), Limit::AtMost(0.50)),
            ("throughput to Envoy's, h2c", to_base(H2c, Saturated, "calls/s"), Limit::AtLeast(1.5)),
            ("throughput to Envoy's, mTLS", to_base(Mtls, Saturated, "calls/s"), Limit::AtLeast(1.4)),
            ("p99 to Envoy's, saturated, h2c", to_base(H2c, Saturated, "p99"), Limit::AtMost(0.8)),
            ("p99 to Envoy's, saturated, mTLS", to_base(Mtls, Saturated, "p99"), Limit::AtMost(0.8)),
            ("p99 to Envoy's, fixed rate, h2c", to_base(H2c, Paced, "p99"), Limit::AtMost(0.8)),
            ("p99 to Envoy's, fixed rate, mTLS", to_base(Mtls, Paced, "p99"), Limit::AtMost(0.8)),
            ("p50 one at a time to Envoy's, h2c", to_base(H2c, Alone, "p50"), Limit::AtMost(0.7)),
            ("p50 one at a time to Envoy's, mTLS", to_base(Mtls, Alone, "p50"), Limit::AtMost(0.7)),
            ("MiB with 1,000 streams open", held.reduce(f64::max), Limit::AtMost(25.0)),
            ("64 KiB, throughput to Envoy's, h2c", to_base(H2c, Large, "calls/s"), Limit::AtLeast(1.0)),
            ("64 KiB, throughput to Envoy's, mTLS", to_base(Mtls, Large, "calls/s"), Limit::AtLeast(1.0)),
            ("CPU of a streamed message to a call's, h2c", streamed(H2c), Limit::AtMost(1.2)),
            ("CPU of a streamed message to a call's, mTLS", streamed(Mtls), Limit::AtMost(1.2)),
            ("CPU per call with 2 workers to 1 worker's", one("CPU"), Limit::AtMost(1.1)),
        ];
        println!("\nGoals:");
        for (what, value, limit) in goals {
            let (met, bound) = match (value, limit) {
                (None, _) => ("not measured", String::new()),
                (Some(value), Limit::AtMost(most)) => {
                    (if value <= most { "met" } else { "MISSED" }, format!("≤ {most}"))
                }
                (Some(value), Limit::AtLeast(least)) => {
                    (if value >= least { "met" } else { "MISSED" }, format!("≥ {least}"))
                }
            };
            println!("  {what:<46}{:>7.2} {bound:<7}{met}", value.unwrap_or(f64::NAN));
        }
        if let Some(ratio) = one("calls/s") {
            println!(
                "  (throughput with 2 workers to 1 worker's: {ratio:.2}; client and agents share the cores)"
            );
        }
    }
}

enum Limit {
    AtMost(f64),
    AtLeast(f64),
}

fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        n if n % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}
