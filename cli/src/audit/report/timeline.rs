//! The picture of a run: a bar for each event, on the time of the check.

use crate::audit::evidence::Event;

/// The width of the picture, near that of a phone, so that its text is readable there.
const WIDTH: f64 = 320.0;
/// The height of an event: a line of text, and its bar.
const ROW: f64 = 34.0;
/// The space at the left and right.
const MARGIN: f64 = 6.0;
/// The most characters of a line.
const CHARACTERS: usize = 48;

/// A picture.
#[derive(Debug)]
pub(super) struct Timeline {
    pub(super) width: f64,
    pub(super) height: f64,
    pub(super) bars: Vec<Bar>,
    pub(super) ticks: Vec<Tick>,
}

/// An event in a picture.
#[derive(Debug)]
pub(super) struct Bar {
    pub(super) x: String,
    pub(super) y: String,
    pub(super) width: String,
    pub(super) text_y: String,
    pub(super) class: &'static str,
    pub(super) text: String,
    pub(super) title: String,
}

/// A mark on the axis of time.
#[derive(Debug)]
pub(super) struct Tick {
    pub(super) x: String,
    pub(super) anchor: &'static str,
    pub(super) text: String,
}

impl Timeline {
    pub(super) fn of(events: &[Event]) -> Timeline {
        let start = events.iter().map(|event| event.from_ms).fold(f64::INFINITY, f64::min);
        let end = events.iter().map(|event| event.to_ms).fold(0.0, f64::max);
        let start = if start.is_finite() { start } else { 0.0 };
        let scale = (WIDTH - 2.0 * MARGIN) / (end - start).max(1.0);
        let x = |ms: f64| MARGIN + (ms - start) * scale;
        let mut y = 0.0;
        let bar = |event: &Event| {
            let line = format!("{}: {}", event.label, event.result);
            let title = format!("{line} ({:.1} to {:.1} ms)", event.from_ms, event.to_ms);
            let bar = Bar {
                x: format!("{:.1}", x(event.from_ms)),
                y: format!("{:.1}", y + 19.0),
                width: format!("{:.1}", ((event.to_ms - event.from_ms) * scale).max(3.0)),
                text_y: format!("{:.1}", y + 13.0),
                class: event.kind.name(),
                text: shortened(&line),
                title,
            };
            y += ROW;
            bar
        };
        let bars: Vec<_> = events.iter().map(bar).collect();
        let tick = |(part, anchor): (f64, &'static str)| {
            let ms = start + (end - start) * part;
            Tick { x: format!("{:.1}", x(ms)), anchor, text: format!("{ms:.0} ms") }
        };
        let ticks = [(0.0, "start"), (0.5, "middle"), (1.0, "end")].into_iter().map(tick).collect();
        Timeline { width: WIDTH, height: y + 18.0, bars, ticks }
    }
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(CHARACTERS) {
        Some((at, _)) => format!("{}..", &text[..at]),
        None => text.to_owned(),
    }
}
