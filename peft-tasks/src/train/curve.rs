//! The loss curve of a run as an SVG picture.

use peft_core::{PeftError, Result};
use plotters::coord::Shift;
use plotters::prelude::*;

use crate::train::log::Record;

/// What a curve shows. Points are `(step, value)`; those that are not finite are left out.
#[derive(Debug, Clone, PartialEq)]
pub struct Curve {
    /// Above the picture.
    pub title: String,
    /// Under the horizontal axis.
    pub x_label: String,
    /// Beside the vertical axis.
    pub y_label: String,
    /// Loss of training.
    pub train: Vec<(f64, f64)>,
    /// Loss of evaluations.
    pub eval: Vec<(f64, f64)>,
    /// Learning rate, on an axis of its own; empty for none.
    pub learning_rate: Vec<(f64, f64)>,
    /// Width and height in pixels.
    pub size: (u32, u32),
}

impl Default for Curve {
    fn default() -> Self {
        Self {
            title: "Loss".to_owned(),
            x_label: "step".to_owned(),
            y_label: "loss".to_owned(),
            train: Vec::new(),
            eval: Vec::new(),
            learning_rate: Vec::new(),
            size: (800, 480),
        }
    }
}

// Okabe & Ito's palette: told apart by colour-blind readers, and in grey by its lightness.
const TRAIN: RGBColor = RGBColor(0, 114, 178);
const EVAL: RGBColor = RGBColor(213, 94, 0);
const RATE: RGBColor = RGBColor(150, 150, 150);
const INK: RGBColor = RGBColor(50, 50, 50);
const GRID: RGBColor = RGBColor(228, 228, 228);

/// More than that is not seen at any size, and makes the file heavy.
const MOST_POINTS: usize = 1000;
/// From here on single batches hide the trend: they are drawn faintly, with a smoothed line over them.
const SMOOTH_FROM: usize = 60;

impl Curve {
    /// The curve of a run's log.
    pub fn from_records(title: impl Into<String>, records: &[Record]) -> Self {
        let mut curve = Self { title: title.into(), ..Self::default() };
        for record in records {
            match record {
                Record::Train(it) => {
                    curve.train.push((it.step as f64, it.loss));
                    curve.learning_rate.push((it.step as f64, it.lr));
                }
                Record::Eval(it) => curve.eval.push((it.step as f64, it.loss)),
            }
        }
        curve
    }

    /// The picture as the text of an SVG file. Without a point it shows empty axes.
    ///
    /// # Errors
    /// The size leaves no room for a picture.
    pub fn to_svg(&self) -> Result<String> {
        let (width, height) = self.size;
        if width < 200 || height < 150 {
            return Err(PeftError::config("size", format!("is {width} x {height}, expected at least 200 x 150")));
        }
        let mut svg = String::new();
        let area = SVGBackend::with_string(&mut svg, self.size).into_drawing_area();
        self.draw(&area).map_err(|error| PeftError::Invalid(format!("the curve cannot be drawn: {error}")))?;
        drop(area);
        Ok(svg)
    }

    fn draw<'a>(
        &self,
        area: &DrawingArea<SVGBackend<'a>, Shift>,
    ) -> Result<(), DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>> {
        area.fill(&WHITE)?;
        let (train, eval, mut rate) = (finite(&self.train), finite(&self.eval), finite(&self.learning_rate));
        rate.retain(|it| it.1 >= 0.0);
        let x = range(train.iter().chain(&eval).chain(&rate).map(|it| it.0), 0.0, (0.0, 1.0));
        let y = range(train.iter().chain(&eval).map(|it| it.1), 0.06, (0.0, 1.0));
        let highest = rate.iter().map(|it| it.1).fold(0.0, f64::max);
        let rates = 0.0..if highest > 1e-30 { highest * 1.15 } else { 1.0 };
        let two_axes = !rate.is_empty();

        let mut builder = ChartBuilder::on(area);
        builder
            .caption(&self.title, ("sans-serif", 20).into_font().color(&INK))
            .margin(14)
            .margin_right(if two_axes { 8 } else { 24 })
            .x_label_area_size(44)
            .y_label_area_size(62);
        if two_axes {
            builder.right_y_label_area_size(76);
        }
        let mut chart = builder.build_cartesian_2d(x.clone(), y)?.set_secondary_coord(x, rates);
        let text = ("sans-serif", 13).into_font().color(&INK);
        chart
            .configure_mesh()
            .bold_line_style(GRID)
            .light_line_style(TRANSPARENT)
            .axis_style(INK)
            .x_labels(9)
            .y_labels(8)
            .x_desc(&self.x_label)
            .y_desc(&self.y_label)
            .x_label_formatter(&|it| number(*it))
            .y_label_formatter(&|it| number(*it))
            .label_style(text.clone())
            .axis_desc_style(("sans-serif", 14).into_font().color(&INK))
            .draw()?;

        if two_axes {
            chart
                .configure_secondary_axes()
                .axis_style(RATE)
                .y_labels(6)
                .y_desc("learning rate")
                .y_label_formatter(&|it| number(*it))
                .label_style(("sans-serif", 13).into_font().color(&INK))
                .axis_desc_style(("sans-serif", 14).into_font().color(&INK))
                .draw()?;
            chart.draw_secondary_series(LineSeries::new(thinned(&rate), RATE.stroke_width(1)))?;
        }
        if !train.is_empty() {
            let smooth = train.len() >= SMOOTH_FROM;
            if smooth {
                chart.draw_series(LineSeries::new(thinned(&train), TRAIN.mix(0.25).stroke_width(1)))?;
            }
            let line = if smooth { smoothed(&thinned(&train)) } else { thinned(&train) };
            let style = TRAIN.stroke_width(2);
            chart
                .draw_series(LineSeries::new(line, style))?
                .label(if smooth { "train (smoothed)" } else { "train" })
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 22, y)], style));
            // A line through one point is invisible.
            if train.len() == 1 {
                chart.draw_series(train.iter().map(|it| Circle::new(*it, 4, TRAIN.filled())))?;
            }
        }
        if !eval.is_empty() {
            let style = EVAL.stroke_width(2);
            chart
                .draw_series(LineSeries::new(thinned(&eval), style))?
                .label("eval")
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 22, y)], style));
            if eval.len() <= 60 {
                chart.draw_series(eval.iter().map(|it| Circle::new(*it, 4, EVAL.filled())))?;
            }
        }
        if two_axes {
            // Drawn above, behind the losses; named here, after them.
            chart
                .draw_secondary_series(LineSeries::new(std::iter::empty(), RATE))?
                .label("learning rate")
                .legend(|(x, y)| PathElement::new([(x, y), (x + 22, y)], RATE.stroke_width(1)));
        }
        if !(train.is_empty() && eval.is_empty() && rate.is_empty()) {
            chart
                .configure_series_labels()
                .position(SeriesLabelPosition::UpperRight)
                .margin(12)
                .legend_area_size(28)
                .label_font(text)
                .background_style(WHITE.mix(0.9))
                .border_style(GRID)
                .draw()?;
        }
        area.present()
    }
}

fn finite(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    // Coordinates beyond this overflow in the arithmetic of axes.
    let drawable = |it: f64| it.is_finite() && it.abs() < 1e100;
    points.iter().copied().filter(|(x, y)| drawable(*x) && drawable(*y)).collect()
}

/// From the least to the greatest value with some room around, and never empty.
fn range(values: impl Iterator<Item = f64>, room: f64, fallback: (f64, f64)) -> std::ops::Range<f64> {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), it| (low.min(it), high.max(it)));
    if low > high {
        return fallback.0..fallback.1;
    }
    if low == high {
        let around = if low == 0.0 { 1.0 } else { low.abs() * 0.1 };
        return low - around..high + around;
    }
    low - (high - low) * room..high + (high - low) * room
}

/// Means of neighbouring points, at most [`MOST_POINTS`] of them.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let each = points.len().div_ceil(MOST_POINTS).max(1);
    let mean = |some: &[(f64, f64)]| {
        let (x, y) = some.iter().fold((0.0, 0.0), |sum, it| (sum.0 + it.0, sum.1 + it.1));
        (x / some.len() as f64, y / some.len() as f64)
    };
    points.chunks(each).map(mean).collect()
}

/// The value at each point of the line that fits the points around it best, over a window of about a twenty-fifth of
/// the run. Unlike a mean this does not lag where a run starts steeply or ends.
fn smoothed(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let half = (points.len() / 50).max(5);
    let fit = |index: usize| {
        let window = &points[index.saturating_sub(half)..points.len().min(index + half + 1)];
        let count = window.len() as f64;
        let (mean_x, mean_y) = window.iter().fold((0.0, 0.0), |sum, it| (sum.0 + it.0 / count, sum.1 + it.1 / count));
        let (mut joint, mut spread) = (0.0, 0.0);
        for (x, y) in window {
            joint += (x - mean_x) * (y - mean_y);
            spread += (x - mean_x).powi(2);
        }
        let x = points[index].0;
        (x, mean_y + if spread > 0.0 { joint / spread * (x - mean_x) } else { 0.0 })
    };
    (0..points.len()).map(fit).collect()
}

/// A number as short as it can be read: `2.5`, `1200`, `2e-4`.
fn number(value: f64) -> String {
    if value == 0.0 || value.abs() < 1e-12 {
        return "0".to_owned();
    }
    if !(1e-3..1e6).contains(&value.abs()) {
        let text = format!("{value:.2e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        return format!("{}e{exponent}", trim(digits));
    }
    trim(&format!("{value:.4}")).to_owned()
}

fn trim(digits: &str) -> &str {
    if digits.contains('.') { digits.trim_end_matches('0').trim_end_matches('.') } else { digits }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::rng;

    /// A run of 400 steps as they look, with an evaluation every 50.
    fn curve(steps: usize) -> Curve {
        let mut generator = rng::generator(1, 0);
        let loss = |step: usize| 1.4 + 2.2 * (-(step as f64) / 90.0).exp();
        let train = (1..=steps).map(|it| (it as f64, loss(it) + 0.5 * (rng::unit(&mut generator) - 0.5))).collect();
        let eval = (50..=steps).step_by(50).map(|it| (it as f64, loss(it) + 0.12)).collect();
        let warm = |it: usize| if it < 40 { it as f64 / 40.0 } else { 1.0 - (it - 40) as f64 / 360.0 };
        let learning_rate = (1..=steps).map(|it| (it as f64, 2e-4 * warm(it))).collect();
        Curve { title: "LoRA r = 8 on q, v".to_owned(), train, eval, learning_rate, ..Curve::default() }
    }

    #[test]
    fn a_run_is_drawn_whole() {
        let svg = curve(400).to_svg().unwrap();
        for part in
            ["<svg", "</svg>", "LoRA r = 8 on q, v", "step", "loss", "learning rate", "train (smoothed)", "eval"]
        {
            assert!(svg.contains(part), "{part} is missing");
        }
        assert!(svg.len() < 100_000, "{}", svg.len());
    }

    #[test]
    fn odd_runs_are_drawn_too() {
        let points: [&[(f64, f64)]; 7] = [
            &[],
            &[(1.0, 2.0)],
            &[(0.0, 0.0)],
            &[(1.0, f64::NAN), (2.0, f64::INFINITY)],
            &[(1.0, 2.0), (2.0, 2.0)],
            &[(1.0, 1e300), (2.0, -1e-300)],
            &[(1.0, 1e12), (2.0, 1e12 + 1.0)],
        ];
        for train in points {
            for (eval, rate) in [(false, false), (true, false), (false, true), (true, true)] {
                let some = |it: bool| if it { train.to_vec() } else { Vec::new() };
                let curve =
                    Curve { train: train.to_vec(), eval: some(eval), learning_rate: some(rate), ..Curve::default() };
                let svg = curve.to_svg().unwrap();
                assert!(svg.ends_with("</svg>\n") && !svg.contains("NaN") && !svg.contains("inf"), "{train:?}");
            }
        }
        let tiny = Curve { size: (10, 10), ..Curve::default() };
        assert!(tiny.to_svg().unwrap_err().to_string().starts_with("`size` is 10 x 10"));
    }

    #[test]
    fn long_runs_are_thinned_and_smoothing_keeps_a_line() {
        let line: Vec<(f64, f64)> = (0..5000).map(|it| (it as f64, 3.0 * it as f64)).collect();
        assert!(thinned(&line).len() <= MOST_POINTS);
        assert!(smoothed(&line).iter().zip(&line).all(|(a, b)| (a.1 - b.1).abs() < 1e-6));
    }

    #[test]
    fn numbers_are_short() {
        let shown = [0.0, 2.5, 1200.0, 0.0002, -0.5, 3e9, 0.30000000000000004, 1.5e-5].map(number);
        assert_eq!(shown, ["0", "2.5", "1200", "2e-4", "-0.5", "3e9", "0.3", "1.5e-5"]);
    }
}
