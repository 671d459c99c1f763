//! The picture of the table: one panel of bars for each of some figures. Plain SVG, no fonts or scripts from elsewhere.

use std::fmt::Write;

use crate::{
    budgets::short,
    results::Results,
    scenarios::Scenario,
    systems::{KINDS, Kind},
};

struct Panel {
    title: &'static str,
    scenario: Scenario,
    figure: &'static str,
    unit: f64,
}

const fn panel(title: &'static str, scenario: Scenario, figure: &'static str, unit: f64) -> Panel {
    Panel { title, scenario, figure, unit }
}

const PANELS: &[Panel] = &[
    panel("QoS 1, 64 B: k acknowledged a second (more is better)", Scenario::Qos1Small, "per_second", 1e3),
    panel("… CPU seconds a million (less)", Scenario::Qos1Small, "cpu_seconds_per_million", 1.0),
    panel("One consumer: k delivered a second (more)", Scenario::FanIn, "per_second", 1e3),
    panel("PUBACK at 1,000/s: p99 ms (less)", Scenario::Latency, "puback_p99_ms", 1.0),
    panel("Idle connection: KiB (less)", Scenario::Connect, "idle_bytes", 1024.0),
    panel("CONNECT/s (more)", Scenario::Connect, "connects_per_second", 1.0),
];

const WIDTH: usize = 430;
const COLUMNS: usize = 2;
const LINE: usize = 18;
const NAMES: usize = 130;
const VALUES: usize = 60;
const HEAD: usize = 30;

/// The whole picture.
pub fn render(results: &Results) -> String {
    let kinds: Vec<Kind> = KINDS
        .iter()
        .copied()
        .filter(|kind| *kind != Kind::Redis && !kind.once())
        .filter(|kind| results.runs.iter().any(|run| run.system == kind.name()))
        .collect();
    let height = HEAD + kinds.len() * LINE + 16;
    let rows = PANELS.len().div_ceil(COLUMNS);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n",
        WIDTH * COLUMNS,
        height * rows
    );
    for (index, panel) in PANELS.iter().enumerate() {
        let (x, y) = (index % COLUMNS * WIDTH, index / COLUMNS * height);
        // Writing to a string does not fail.
        let _ = writeln!(out, "<g transform=\"translate({x} {y})\">");
        let _ = bars(&mut out, results, panel, &kinds);
        let _ = writeln!(out, "</g>");
    }
    out.push_str("</svg>\n");
    out
}

fn bars(out: &mut String, results: &Results, panel: &Panel, kinds: &[Kind]) -> std::fmt::Result {
    let value =
        |kind: &Kind| results.median(*kind, panel.scenario, panel.figure).map(|value| value / panel.unit);
    let most = kinds.iter().filter_map(value).fold(f64::MIN_POSITIVE, f64::max);
    writeln!(out, "<text x=\"8\" y=\"20\" font-weight=\"bold\">{}</text>", panel.title)?;
    for (line, kind) in kinds.iter().enumerate() {
        let y = HEAD + line * LINE;
        let name = kind.title().replace('`', "");
        writeln!(out, "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{name}</text>", NAMES - 6, y + 12)?;
        let Some(value) = value(kind) else {
            writeln!(out, "<text x=\"{NAMES}\" y=\"{}\" fill=\"#888\">–</text>", y + 12)?;
            continue;
        };
        let width = (value / most * (WIDTH - NAMES - VALUES) as f64).max(1.0);
        let colour = if kind.is_ours() { "#0b6e99" } else { "#b9c2c9" };
        writeln!(
            out,
            "<rect x=\"{NAMES}\" y=\"{}\" width=\"{width:.1}\" height=\"13\" fill=\"{colour}\"/>",
            y + 2
        )?;
        let x = NAMES as f64 + width + 4.0;
        writeln!(out, "<text x=\"{x:.1}\" y=\"{}\">{}</text>", y + 12, short(value))?;
    }
    Ok(())
}
