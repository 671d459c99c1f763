//! Plots as SVG, drawn into a page: lines over time, and percentiles. Text in, text out; nothing is loaded from anywhere.

use std::fmt::Write;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 240.0;
/// Room for the labels.
const LEFT: f64 = 64.0;
const BOTTOM: f64 = 28.0;
const TOP: f64 = 10.0;
/// Points of one line; more are thinned out.
const POINTS: usize = 1_500;

/// Colours that are told apart without colour vision, too (Okabe and Ito).
const COLOURS: [&str; 4] = ["#0072b2", "#e69f00", "#009e73", "#cc79a7"];

/// A line and its name.
pub(crate) struct Line {
    pub(crate) name: &'static str,
    /// From left to right.
    pub(crate) points: Vec<(f64, f64)>,
}

/// How a plot looks.
pub(crate) struct Plot {
    pub(crate) title: &'static str,
    /// Of the vertical axis.
    pub(crate) unit: &'static str,
    /// Labels below: place and text.
    pub(crate) ticks: Vec<(f64, String)>,
    pub(crate) lines: Vec<Line>,
}

/// Text in a page.
pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A number as short as it can be read.
pub(crate) fn short(value: f64) -> String {
    match value {
        value if value >= 1e6 => format!("{:.1}M", value / 1e6),
        value if value >= 1e4 => format!("{:.0}k", value / 1e3),
        value if value >= 100.0 || value.fract() == 0.0 => format!("{value:.0}"),
        value if value >= 1.0 => format!("{value:.1}"),
        value => format!("{value:.3}"),
    }
}

impl Plot {
    /// Ticks for seconds.
    pub(crate) fn seconds(last: f64) -> Vec<(f64, String)> {
        let step = step(last);
        let count = if step > 0.0 { (last / step).floor() as u32 } else { 0 };
        (0..=count).map(|at| f64::from(at) * step).map(|at| (at, format!("{} s", short(at)))).collect()
    }

    /// The plot; empty when there is nothing to draw.
    pub(crate) fn svg(mut self) -> String {
        self.lines.retain(|line| line.points.len() > 1);
        let points = || self.lines.iter().flat_map(|line| &line.points);
        let highest = points().map(|(_, y)| *y).fold(0.0, f64::max);
        let first = points().map(|(x, _)| *x).fold(f64::INFINITY, f64::min);
        let last = points().map(|(x, _)| *x).fold(f64::NEG_INFINITY, f64::max);
        if self.lines.is_empty() || last <= first {
            return String::new();
        }
        let scale = Scale { first, last, step: step(highest), highest: highest.max(1e-9) * 1.05 };
        let mut out = format!("<figure><figcaption>{}</figcaption>", escape(self.title));
        out.push_str(&self.legend());
        // Writing to a String does not fail.
        let _ = write!(
            out,
            r#"<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{}">"#,
            escape(self.title)
        );
        out.push_str(&self.axes(&scale));
        for (line, colour) in self.lines.iter().zip(COLOURS.iter().cycle()) {
            out.push_str(&scale.path(line, colour));
        }
        out.push_str("</svg></figure>\n");
        out
    }

    fn legend(&self) -> String {
        let names = self.lines.iter().zip(COLOURS.iter().cycle());
        let items = names
            .map(|(line, colour)| format!(r#"<span style="color:{colour}">■ {}</span> "#, escape(line.name)));
        format!("<p class=\"legend\">{}</p>", items.collect::<String>())
    }

    fn axes(&self, scale: &Scale) -> String {
        let mut out = String::new();
        let right = WIDTH - 8.0;
        let mut value = 0.0;
        while value <= scale.highest && scale.step > 0.0 {
            let y = scale.y(value);
            let _ = write!(
                out,
                r##"<line x1="{LEFT}" x2="{right}" y1="{y:.1}" y2="{y:.1}" stroke="#ddd"/><text x="{}" y="{:.1}" text-anchor="end">{} {}</text>"##,
                LEFT - 6.0,
                y + 4.0,
                short(value),
                escape(self.unit),
            );
            value += scale.step;
        }
        for (at, text) in self.ticks.iter().filter(|(at, _)| (scale.first..=scale.last).contains(at)) {
            let _ = write!(
                out,
                r#"<text x="{:.1}" y="{}" text-anchor="middle">{}</text>"#,
                scale.x(*at),
                HEIGHT - 8.0,
                escape(text)
            );
        }
        out
    }
}

struct Scale {
    first: f64,
    last: f64,
    step: f64,
    highest: f64,
}

impl Scale {
    fn x(&self, value: f64) -> f64 {
        LEFT + (value - self.first) / (self.last - self.first) * (WIDTH - LEFT - 24.0)
    }

    fn y(&self, value: f64) -> f64 {
        HEIGHT - BOTTOM - value / self.highest * (HEIGHT - BOTTOM - TOP)
    }

    fn path(&self, line: &Line, colour: &str) -> String {
        let thin = line.points.len().div_ceil(POINTS).max(1);
        let mut path = String::new();
        for (x, y) in line.points.iter().step_by(thin) {
            let verb = if path.is_empty() { 'M' } else { 'L' };
            let _ = write!(path, "{verb}{:.1} {:.1}", self.x(*x), self.y(*y));
        }
        format!(r#"<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>"#)
    }
}

/// Distance of some five ticks up to a value: 1, 2 or 5 times a power of ten.
fn step(highest: f64) -> f64 {
    if !highest.is_finite() || highest <= 0.0 {
        return 0.0;
    }
    let rough = highest / 5.0;
    let power = 10f64.powf(rough.log10().floor());
    let factor = [1.0, 2.0, 5.0].into_iter().find(|factor| factor * power >= rough);
    factor.unwrap_or(10.0) * power
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_numbers() {
        for (highest, expected) in [(10.0, 2.0), (7.0, 2.0), (23.0, 5.0), (1_000.0, 200.0), (0.3, 0.1)] {
            assert!((step(highest) - expected).abs() < 1e-9, "{highest}: {}", step(highest));
        }
        assert_eq!(step(0.0), 0.0);
    }

    #[test]
    fn nothing_to_draw_is_no_plot() {
        let plot = |points| Plot {
            title: "t",
            unit: "",
            ticks: Vec::new(),
            lines: vec![Line { name: "l", points }],
        };
        assert_eq!(plot(vec![]).svg(), "");
        assert_eq!(plot(vec![(1.0, 2.0)]).svg(), "");
        assert!(plot(vec![(0.0, 0.0), (1.0, 0.0)]).svg().contains("<path"));
    }
}
