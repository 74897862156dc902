//! The figures as plots.

use std::path::Path;

use plotters::coord::combinators::IntoLogRange;
use plotters::prelude::*;

/// A curve: this crate's (solid) or by hand (dashed).
pub(crate) struct Curve {
    /// The position of its store among the plot's stores.
    pub(crate) store: usize,
    pub(crate) ours: bool,
    pub(crate) points: Vec<(f64, f64)>,
}

/// One half of a plot.
pub(crate) struct Panel {
    pub(crate) title: String,
    pub(crate) curves: Vec<Curve>,
}

/// The labels of the axes.
pub(crate) struct Axes {
    pub(crate) x: &'static str,
    pub(crate) y: &'static str,
}

const COLOURS: [RGBColor; 5] = [
    RGBColor(31, 119, 180),
    RGBColor(44, 140, 60),
    RGBColor(200, 50, 40),
    RGBColor(140, 86, 175),
    RGBColor(120, 90, 60),
];

type Drawn = Result<(), Box<dyn std::error::Error>>;

/// Draws two panels side by side, on logarithmic axes.
pub(crate) fn draw(path: &Path, axes: &Axes, stores: &[&str], panels: [Panel; 2]) -> Drawn {
    let area = SVGBackend::new(path, (1100, 480)).into_drawing_area();
    area.fill(&WHITE)?;
    let (legend, area) = area.split_vertically(30);
    let font = ("sans-serif", 14);
    for (place, store) in stores.iter().enumerate() {
        let left = 80 + 130 * place as i32;
        let line = PathElement::new([(left, 20), (left + 24, 20)], COLOURS[place].stroke_width(3));
        legend.draw(&line)?;
        legend.draw(&Text::new((*store).to_owned(), (left + 32, 13), font))?;
    }
    let left = 80 + 130 * stores.len() as i32;
    legend.draw(&Text::new("solid: nevertwice, dashed: by hand", (left, 13), font))?;
    for (half, panel) in area.split_evenly((1, 2)).iter().zip(&panels) {
        draw_panel(half, axes, panel)?;
    }
    area.present()?;
    Ok(())
}

fn draw_panel(
    area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    axes: &Axes,
    panel: &Panel,
) -> Drawn {
    let points = || panel.curves.iter().flat_map(|curve| &curve.points);
    let range = |values: Vec<f64>| {
        let low = values.iter().copied().fold(f64::INFINITY, f64::min);
        let high = values.iter().copied().fold(0.0, f64::max);
        (low, high.max(low * 1.01))
    };
    let (left, right) = range(points().map(|point| point.0).collect());
    let (bottom, top) = range(points().map(|point| point.1).collect());
    let mut chart = ChartBuilder::on(area)
        .caption(&panel.title, ("sans-serif", 18))
        .margin(10)
        .x_label_area_size(40)
        .y_label_area_size(70)
        .build_cartesian_2d((left..right * 1.05).log_scale(), (bottom / 1.6..top * 1.6).log_scale())?;
    chart
        .configure_mesh()
        .x_desc(axes.x)
        .y_desc(axes.y)
        .x_label_formatter(&tick)
        .y_label_formatter(&tick)
        .light_line_style(WHITE)
        .draw()?;
    for curve in &panel.curves {
        let colour = COLOURS[curve.store % COLOURS.len()];
        let points = curve.points.iter().copied();
        if curve.ours {
            chart.draw_series(LineSeries::new(points, colour.stroke_width(2)).point_size(3))?;
        } else {
            chart.draw_series(DashedLineSeries::new(points, 5, 4, colour.stroke_width(1)))?;
        }
    }
    Ok(())
}

/// Returns a tick's label, or none where there is no room for it.
fn tick(value: &f64) -> String {
    let leading = value / 10_f64.powf((value.log10() + 1e-9).floor());
    if ![1.0, 2.0, 5.0].iter().any(|shown| (leading - shown).abs() < 0.01) {
        return String::new();
    }
    match *value {
        value if value >= 999_999.0 => format!("{} M", (value / 1e5).round() / 10.0),
        value if value >= 999.0 => format!("{} k", (value / 1e2).round() / 10.0),
        value => format!("{}", (value * 100.0).round() / 100.0),
    }
}
