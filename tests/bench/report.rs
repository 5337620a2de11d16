//! The figures of all rounds, as a table of medians and as plots.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs, io,
    path::Path,
};

use super::{scenarios::Scenario, systems::System};

/// Every figure of every round.
#[derive(Default)]
pub(crate) struct Figures(BTreeMap<(Scenario, &'static str), BTreeMap<System, Vec<f64>>>);

/// A figure's unit, and whether more of it is better.
fn meaning(figure: &str) -> (&'static str, bool) {
    match figure {
        "cpu_us" => ("CPU of both sidecars, µs a request", false),
        "requests_s" => ("requests a second", true),
        "p50_ms" => ("p50, ms", false),
        "p99_ms" => ("p99, ms", false),
        "p999_ms" => ("p99.9, ms", false),
        "cpu_us_per_mib" => ("CPU of both sidecars, µs a MiB", false),
        "gbit_s" => ("Gbit/s", true),
        "pair_mib" => ("memory of the idle pair, MiB", false),
        "kib_per_connection" => ("memory of both an idle connection, KiB", false),
        "ready_ms" => ("ms", false),
        "few_cpu_us" => ("few: CPU of both, µs a request", false),
        "many_cpu_us" => ("many: CPU of both, µs a request", false),
        _ => ("", false),
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

/// The greatest distance of a round from the median, in per cent of it.
fn spread(values: &[f64]) -> f64 {
    let middle = median(values);
    values.iter().map(|v| (v - middle).abs()).fold(0.0, f64::max) / middle.max(f64::MIN_POSITIVE) * 100.0
}

fn short(value: f64) -> String {
    match value {
        v if v >= 10_000.0 => {
            let whole = v.round() as u64;
            format!("{},{:03}", whole / 1_000, whole % 1_000)
        }
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

impl Figures {
    pub(crate) fn add(&mut self, scenario: Scenario, system: System, figures: &[(&'static str, f64)]) {
        for (name, value) in figures {
            self.0.entry((scenario, name)).or_default().entry(system).or_default().push(*value);
        }
    }

    /// Markdown: a table for each scenario, a row for each system, with our ratio to it and the spread of its rounds.
    pub(crate) fn table(&self) -> String {
        let mut text = String::new();
        for scenario in self.0.keys().map(|(s, _)| *s).collect::<BTreeSet<_>>() {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "\n**{}**\n", scenario.title());
            let of_it: Vec<_> = self.0.iter().filter(|((s, _), _)| *s == scenario).collect();
            let names: Vec<_> = of_it.iter().map(|((_, name), _)| meaning(name).0).collect();
            let _ = writeln!(text, "| | {} |\n|---|{}", names.join(" | "), "---|".repeat(names.len()));
            for system in System::ALL {
                if !of_it.iter().any(|(_, by)| by.contains_key(&system)) {
                    continue;
                }
                let cells: Vec<_> = of_it.iter().map(|(_, by)| cell(by, system)).collect();
                let _ = writeln!(text, "| {} | {} |", system.name(), cells.join(" | "));
            }
        }
        text
    }

    /// An SVG file for each figure that has something to compare.
    pub(crate) fn plots(&self, dir: &Path) -> io::Result<()> {
        fs::create_dir_all(dir)?;
        for ((scenario, name), by) in &self.0 {
            if by.len() > 1 {
                let title = format!("{} — {}", scenario.title(), meaning(name).0);
                fs::write(dir.join(format!("{}-{name}.svg", scenario.key())), bars(&title, by, meaning(name).1))?;
            }
        }
        Ok(())
    }
}

fn cell(by: &BTreeMap<System, Vec<f64>>, system: System) -> String {
    let Some(values) = by.get(&system) else { return "–".to_owned() };
    let middle = median(values);
    let ratio = match by.get(&System::Outrigger) {
        Some(ours) if !matches!(system, System::Outrigger | System::Direct) => {
            format!(" (we: {:.2} ×)", median(ours) / middle)
        }
        _ => String::new(),
    };
    let spread = if values.len() > 1 { format!(" ±{:.0} %", spread(values)) } else { String::new() };
    format!("{}{spread}{ratio}", short(middle))
}

/// A bar for each system, ours first in colour; a line shows the range of the rounds.
fn bars(title: &str, by: &BTreeMap<System, Vec<f64>>, more_is_better: bool) -> String {
    const ROW: usize = 30;
    const LEFT: f64 = 110.0;
    const WIDTH: f64 = 460.0;
    let rows: Vec<_> = System::ALL.iter().filter_map(|s| Some((*s, by.get(s)?))).collect();
    let top = rows.iter().flat_map(|(_, v)| v.iter().copied()).fold(f64::MIN_POSITIVE, f64::max);
    let height = 64 + rows.len() * ROW;
    let better = if more_is_better { "more is better" } else { "less is better" };
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"680\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"680\" height=\"{height}\" fill=\"#fff\"/>\n\
         <text x=\"12\" y=\"22\" font-weight=\"bold\">{title}</text>\n\
         <text x=\"12\" y=\"40\" fill=\"#666\">median of the rounds and their range; {better}</text>\n"
    );
    for (index, (system, values)) in rows.iter().enumerate() {
        let y = 54 + index * ROW;
        let at = |value: f64| LEFT + value / top * WIDTH;
        let (low, high) = values.iter().fold((f64::MAX, 0.0_f64), |(l, h), v| (l.min(*v), h.max(*v)));
        let colour = if *system == System::Outrigger { "#0a7d5a" } else { "#9db4c0" };
        let (middle, line) = (median(values), y + 10);
        let _ = writeln!(
            svg,
            "<text x=\"12\" y=\"{}\">{}</text>\
             <rect x=\"{LEFT}\" y=\"{y}\" width=\"{:.1}\" height=\"20\" fill=\"{colour}\"/>\
             <path d=\"M{:.1} {line}H{:.1}\" stroke=\"#333\"/>\
             <text x=\"{:.1}\" y=\"{}\">{}</text>",
            y + 15,
            system.name(),
            at(middle) - LEFT,
            at(low),
            at(high),
            at(high.max(middle)) + 8.0,
            y + 15,
            short(middle),
        );
    }
    svg + "</svg>\n"
}
