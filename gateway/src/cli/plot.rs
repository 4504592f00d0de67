//! Plots as SVG: one square, ink from the page's own colours, so that they read in light and dark.
//!
//! Must not know: what is measured.

use gaitway_models::evaluate::Reliability;
use std::fmt::Write;

/// The ROC curve: false alarms to the right, detections up.
pub(super) fn roc(points: &[(f64, f64)]) -> String {
    let mut line = String::new();
    for (x, y) in points.iter().filter(|(x, y)| x.is_finite() && y.is_finite()) {
        let _ = write!(line, "{:.2},{:.2} ", 100.0 * x, 100.0 * (1.0 - y));
    }
    let curve =
        format!("<polyline points='{}' fill='none' stroke='{MARK}' stroke-width='1.2'/>", line.trim_end());
    square("ROC curve", "people called bots", "bots called bots", &curve)
}

/// The reliability diagram: stated probability of a bot to the right, share that were bots up; the
/// larger a dot, the more windows.
pub(super) fn reliability(bins: &[Reliability]) -> String {
    let most = bins.iter().map(|bin| bin.windows).max().unwrap_or(1).max(1) as f64;
    let mut dots = String::new();
    for bin in bins {
        let (x, y) = (100.0 * bin.predicted, 100.0 * (1.0 - bin.observed));
        let radius = 1.2 + 2.3 * (bin.windows as f64 / most).sqrt();
        let _ = write!(
            dots,
            "<circle cx='{x:.2}' cy='{y:.2}' r='{radius:.2}' fill='{MARK}' fill-opacity='.8'>\
             <title>{} windows: stated {:.3}, observed {:.3}</title></circle>",
            bin.windows, bin.predicted, bin.observed
        );
    }
    square("calibration", "stated probability of a bot", "share that were bots", &dots)
}

/// A square from 0 to 1 both ways with its diagonal, axes named.
fn square(name: &str, across: &str, up: &str, inside: &str) -> String {
    let mut ticks = String::new();
    for tick in [0, 25, 50, 75, 100] {
        let share = f64::from(tick) / 100.0;
        let _ = write!(
            ticks,
            "<path d='M{tick} 0V100M0 {tick}H100' stroke='{FAINT}' stroke-opacity='.35' stroke-width='.3'/>\
             <text x='{tick}' y='105' text-anchor='middle'>{share}</text>\
             <text x='-2' y='{}' text-anchor='end'>{share}</text>",
            101.2 - f64::from(tick)
        );
    }
    format!(
        "<svg class=plot xmlns='http://www.w3.org/2000/svg' viewBox='-16 -8 122 124' role=img aria-label='{name}' \
         font-size='4' font-family='system-ui,sans-serif' fill='currentColor'>{ticks}\
         <path d='M0 100L100 0' stroke='{FAINT}' stroke-width='.6' stroke-dasharray='2' fill='none'/>{inside}\
         <text x='50' y='-3' text-anchor='middle' font-weight='600'>{name}</text>\
         <text x='50' y='112' text-anchor='middle'>{across}</text>\
         <text transform='rotate(-90)' x='-50' y='-11' text-anchor='middle'>{up}</text></svg>"
    )
}

/// Colours of the page, with others where an image stands alone.
const MARK: &str = "var(--mark,#2563eb)";
const FAINT: &str = "var(--faint,#9aa5b1)";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_drawn_where_they_belong_and_unknown_ones_not_at_all() {
        let svg = roc(&[(0.0, 0.0), (0.25, 0.75), (f64::NAN, 1.0), (1.0, 1.0)]);
        assert!(svg.contains("points='0.00,100.00 25.00,25.00 100.00,0.00'"), "{svg}");
        let svg = reliability(&[Reliability { windows: 4, predicted: 0.5, observed: 0.25 }]);
        assert!(svg.contains("cx='50.00' cy='75.00' r='3.50'"), "{svg}");
    }
}
