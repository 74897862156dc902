//! The price of what was found.

use serde::Serialize;
use statrs::distribution::{Beta, ContinuousCDF};

use super::probe::Tally;

/// An estimate of double effects, with its arithmetic.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Cost {
    pub(super) requests_per_day: f64,
    pub(super) duplicate_rate: f64,
    /// Operations delivered more than once in this audit.
    pub(super) operations: u64,
    /// Those of them with more than one effect.
    pub(super) doubled: u64,
    pub(super) share: Interval,
    pub(super) per_day: Interval,
    pub(super) per_year: Interval,
    pub(super) arithmetic: Vec<String>,
}

/// A value with its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Interval {
    pub(super) value: f64,
    pub(super) low: f64,
    pub(super) high: f64,
}

impl Interval {
    fn times(self, factor: f64) -> Interval {
        Interval { value: self.value * factor, low: self.low * factor, high: self.high * factor }
    }
}

impl Cost {
    /// Returns nothing if no operation was delivered twice and counted.
    pub(super) fn of(tally: Tally, requests_per_day: f64, duplicate_rate: f64) -> Option<Cost> {
        let Tally { operations, doubled } = tally;
        if operations == 0 {
            return None;
        }
        let share = clopper_pearson(doubled, operations)?;
        let per_day = share.times(requests_per_day * duplicate_rate);
        let per_year = per_day.times(365.0);
        let percent = Interval::times(share, 100.0);
        let mut arithmetic = vec![
            format!(
                "{operations} operations were delivered more than once and counted, {doubled} had more than one effect"
            ),
            format!(
                "share of duplicates with a second effect: {doubled}/{operations} = {:.2} %, 95 % interval {:.2} to {:.2} % (Clopper-Pearson)",
                percent.value, percent.low, percent.high
            ),
        ];
        if doubled == 0 {
            arithmetic.push(format!(
                "none was seen, which is not never: by the rule of three the share is below 3/{operations} = {:.2} % with 95 % confidence",
                300.0 / f64_of(operations)
            ));
        }
        arithmetic.push(format!(
            "{} requests a day x {} % delivered again x share = {} double effects a day ({} to {})",
            number(requests_per_day),
            number(duplicate_rate * 100.0),
            number(per_day.value),
            number(per_day.low),
            number(per_day.high)
        ));
        arithmetic.push(format!(
            "x 365 = {} a year ({} to {})",
            number(per_year.value),
            number(per_year.low),
            number(per_year.high)
        ));
        arithmetic.push(
            "assumes that duplicates come in the mix of this audit, which seeks the bad moments".to_owned(),
        );
        Some(Cost {
            requests_per_day,
            duplicate_rate,
            operations,
            doubled,
            share,
            per_day,
            per_year,
            arithmetic,
        })
    }
}

/// The exact interval of a share, at 95 %.
fn clopper_pearson(hits: u64, tries: u64) -> Option<Interval> {
    let (k, n) = (f64_of(hits), f64_of(tries));
    let low = if hits == 0 { 0.0 } else { Beta::new(k, n - k + 1.0).ok()?.inverse_cdf(0.025) };
    let high = if hits == tries { 1.0 } else { Beta::new(k + 1.0, n - k).ok()?.inverse_cdf(0.975) };
    Some(Interval { value: k / n, low, high })
}

#[allow(clippy::cast_precision_loss, reason = "counts of some hundred requests")]
fn f64_of(count: u64) -> f64 {
    count as f64
}

/// Writes a number with three digits that count.
fn number(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let digits = (2.0 - value.abs().log10().floor()).clamp(0.0, 12.0);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped above")]
    let text = format!("{value:.0$}", digits as usize);
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(found: f64, expected: f64) {
        assert!((found - expected).abs() < 5e-4, "{found} is not {expected}");
    }

    #[test]
    fn the_interval_is_that_of_the_tables() {
        // By R: binom.test(2, 20)$conf.int, binom.test(0, 30), binom.test(10, 10).
        let two = clopper_pearson(2, 20).unwrap();
        near(two.low, 0.01235);
        near(two.high, 0.31698);
        let none = clopper_pearson(0, 30).unwrap();
        near(none.low, 0.0);
        near(none.high, 0.11570);
        let all = clopper_pearson(10, 10).unwrap();
        near(all.low, 0.69150);
        near(all.high, 1.0);
    }

    #[test]
    fn the_price_is_the_product() {
        let tally = Tally { operations: 20, doubled: 2 };
        let cost = Cost::of(tally, 1e6, 1e-5).unwrap();
        near(cost.per_day.value, 1.0);
        near(cost.per_year.value, 365.0);
        assert!(
            cost.arithmetic.iter().any(|line| line.contains("1000000 requests a day x 0.001 %")),
            "{cost:?}"
        );
        assert!(Cost::of(Tally::default(), 1e6, 1e-5).is_none());
        let none = Cost::of(Tally { operations: 30, doubled: 0 }, 1e6, 1e-5).unwrap();
        assert!(none.arithmetic.iter().any(|line| line.contains("3/30 = 10.00 %")), "{none:?}");
    }
}
