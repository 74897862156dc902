//! `fingerprints`: the cost of taking one, which a caller does before it begins.

use std::hint::black_box;
use std::time::Instant;

use nevertwice::Fingerprint;
use serde::{Deserialize, Serialize};

use crate::measure::Median;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct FingerprintCost {
    pub(crate) of: String,
    pub(crate) ns: f64,
}

pub(crate) fn measure() -> Vec<FingerprintCost> {
    let bytes = |length: usize| vec![b'p'; length];
    let (small, payload, large) = (bytes(256), bytes(1024), bytes(65_536));
    let items: Vec<_> = (0..12)
        .map(|item| serde_json::json!({ "sku": format!("sku-{item:04}"), "quantity": item, "price": 4200 }))
        .collect();
    let order = serde_json::json!({
        "customer": "cus_9s6XKzkNRiz8i3", "currency": "EUR", "items": items, "note": "n".repeat(300),
    });
    let order = order.to_string();
    let fields =
        || Fingerprint::builder().field("amount", 4200).field("currency", "EUR").field("to", "acct_7");
    vec![
        cost("256 bytes", || Fingerprint::of(black_box(&small))),
        cost("1 KiB", || Fingerprint::of(black_box(&payload))),
        cost("64 KiB", || Fingerprint::of(black_box(&large))),
        cost(&format!("a JSON text of {} bytes", order.len()), || {
            Fingerprint::of_json(black_box(&order)).expect("what was written is JSON")
        }),
        cost("three fields", || black_box(fields()).build()),
    ]
}

fn cost(of: &str, take: impl Fn() -> Fingerprint) -> FingerprintCost {
    let rounds = (0..9).map(|_| {
        let (start, mut taken) = (Instant::now(), 0_u32);
        while start.elapsed().as_millis() < 10 {
            for _ in 0..16 {
                black_box(take());
            }
            taken += 16;
        }
        start.elapsed().as_nanos() as f64 / f64::from(taken)
    });
    FingerprintCost { of: of.to_owned(), ns: Median::of(rounds).median }
}
