//! A linearizability checker for a recorded history of one key: Wing and Gong's search, with
//! visited states remembered. A call whose answer is unknown took effect at some moment after it
//! was sent, or never.

use std::collections::HashSet;
use std::fmt::Debug;
use std::hash::Hash;

/// One call of a history. Its times are positions in the order of all sends and answers.
#[derive(Debug, Clone)]
pub(crate) struct Event<C, A> {
    pub(crate) call: C,
    pub(crate) sent: usize,
    /// The time and value of the answer, or `None` if the outcome is unknown.
    pub(crate) answered: Option<(usize, A)>,
}

/// The sequential specification of a key, in one of its states.
pub(crate) trait Spec: Clone + Eq + Hash + Debug {
    type Call: Debug;
    type Answer: Debug;

    /// The states in which `call` can leave the key if it is answered by `answer` (`None`:
    /// unknown).
    fn after(&self, call: &Self::Call, answer: Option<&Self::Answer>) -> Vec<Self>;
}

/// Returns true if some order of the calls explains every answer. In that order, a call that was
/// answered before another was sent comes first.
pub(crate) fn is_linearizable<S: Spec>(start: S, history: &[Event<S::Call, S::Answer>]) -> bool {
    assert!(history.len() <= 64, "a history is short");
    let mut seen = HashSet::new();
    let mut open = vec![(0_u64, start)];
    let must: u64 = (0..history.len()).filter(|at| history[*at].answered.is_some()).map(|at| 1 << at).sum();
    while let Some((done, state)) = open.pop() {
        if done & must == must {
            return true;
        }
        if !seen.insert((done, state.clone())) {
            continue;
        }
        let left = || history.iter().enumerate().filter(|(at, _)| done & (1 << at) == 0);
        // The call that was answered first precedes all calls sent after its answer.
        let first = left().filter_map(|(_, event)| event.answered.as_ref()).map(|(at, _)| *at).min();
        // Attempts of one call whose answers were lost are alike: any order of them stands for all.
        let is_twin = |at: usize, event: &Event<S::Call, S::Answer>| {
            let twin = |other: &Event<_, _>| other.answered.is_none() && other.sent == event.sent;
            event.answered.is_none() && left().any(|(other, earlier)| other < at && twin(earlier))
        };
        for (at, event) in left().filter(|(_, event)| first.is_none_or(|first| event.sent < first)) {
            if is_twin(at, event) {
                continue;
            }
            let answer = event.answered.as_ref().map(|(_, answer)| answer);
            open.extend(state.after(&event.call, answer).into_iter().map(|next| (done | 1 << at, next)));
        }
    }
    false
}
