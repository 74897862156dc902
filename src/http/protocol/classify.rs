//! The meaning of a response for the operation's record: [`Keep`], by the application's
//! [`Effects`].

use std::time::Duration;

use crate::lease::Lease;
use crate::record::Recovery;
use crate::request::Request;

/// The statement of the application about its handlers, which decides what a crash, a time-out and
/// a response with status 408 or 5xx mean. There is no default: a wrong one charges twice, or
/// leaves operations to operators that could simply run again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Effects {
    /// The handler calls [`mark_effect`](crate::Lease::mark_effect) right before its effect. A
    /// crash or a 5xx before the mark may run again, after a back-off; one after it is unresolved.
    Marked,
    /// The handler marks nothing. Every crash, 408 and 5xx is unresolved, and an operator (or a
    /// reconciliation with the provider) settles it: the grant itself carries the mark. A 4xx that
    /// frees the key ([`Keep::by_status`]) is the handler's word that nothing happened: do not pass
    /// on a provider's 409 or 429 behind an effect, or set [`Keep`].
    Assumed,
    /// The handler is idempotent itself, or its effects are in one transaction that a failure rolls
    /// back: it runs again after every crash, 408 and 5xx.
    Repeatable,
}

impl Effects {
    /// Returns `request` with the recovery that this statement allows.
    pub fn request(self, request: Request) -> Request {
        match self {
            Effects::Marked => request.recovery(Recovery::RerunUnlessEffect),
            Effects::Assumed => request.recovery(Recovery::RerunUnlessEffect).assume_effect(),
            Effects::Repeatable => request.recovery(Recovery::Rerun),
        }
    }

    /// Returns true if the handler of `lease` marked its effect, or an earlier attempt did. A mark
    /// that the grant itself carries ([`Effects::Assumed`]) does not count.
    pub fn is_marked(self, lease: &Lease) -> bool {
        lease.has_marked() || self != Effects::Assumed && lease.effect_marked()
    }
}

/// The treatment of a response. A handler may set it as an extension of its response, which takes
/// precedence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Keep {
    /// By its status and the layer's [`Effects`]: see [`Keep::by_status`].
    #[default]
    ByStatus,
    /// Completes the operation: duplicates get the response.
    Completed,
    /// Fails the operation for good: duplicates get the response.
    Failed,
    /// Frees the key, since nothing happened: the next request with it is executed, also with
    /// another payload.
    Released,
    /// Fails the operation; the next request executes it again, but not before this time has
    /// passed. Until then, duplicates get the response.
    Retried(Duration),
    /// Fails the operation without knowing whether its effect happened: an operator settles it.
    Unresolved,
    /// Records nothing: another process finishes the operation, by the lease's
    /// [token](crate::Lease::token), and duplicates wait for it. The lease is no longer renewed
    /// here.
    HandedOver,
}

impl Keep {
    /// Returns this treatment of a response after an effect that was marked: it neither frees the
    /// key nor runs again.
    pub(crate) fn after_effect(self) -> Keep {
        match self {
            Keep::Released => Keep::Failed,
            Keep::Retried(_) => Keep::Unresolved,
            other @ (Keep::ByStatus
            | Keep::Completed
            | Keep::Failed
            | Keep::Unresolved
            | Keep::HandedOver) => other,
        }
    }

    /// Returns this treatment, or the one [`by_status`](Keep::by_status) where that is asked for.
    pub fn or_by_status(self, status: u16, (effects, marked): (Effects, bool), back_off: Duration) -> Keep {
        if self == Keep::ByStatus { Keep::by_status(status, effects, marked, back_off) } else { self }
    }

    /// Returns the treatment of a response with `status`. `marked` says that the handler marked its
    /// effect; `back_off` is the time before an operation may run again.
    ///
    /// | status | treatment |
    /// |---|---|
    /// | 2xx, 3xx | `Completed` |
    /// | 400, 401, 403-407, 409, 411-415, 422, 425, 428, 429, 431, 1xx | `Released`, or `Failed` if the effect is marked: a stored answer of this kind could never heal |
    /// | other 4xx | `Failed` |
    /// | 408, 5xx | [`Marked`](Effects::Marked): `Retried` before the mark, `Unresolved` after it; [`Assumed`](Effects::Assumed): `Unresolved`; [`Repeatable`](Effects::Repeatable): `Retried` at once |
    pub fn by_status(status: u16, effects: Effects, marked: bool, back_off: Duration) -> Keep {
        match (status, effects) {
            (200..=399, _) => Keep::Completed,
            (408, effects) | (500.., effects) => Keep::after_fault(effects, marked, back_off),
            (400 | 401 | 403..=407 | 409 | 411..=415 | 422 | 425 | 428 | 429 | 431, _) | (..200, _) => {
                if marked {
                    Keep::Failed
                } else {
                    Keep::Released
                }
            }
            (400..=499, _) => Keep::Failed,
        }
    }

    fn after_fault(effects: Effects, marked: bool, back_off: Duration) -> Keep {
        match effects {
            Effects::Marked if !marked => Keep::Retried(back_off),
            Effects::Marked | Effects::Assumed => Keep::Unresolved,
            Effects::Repeatable => Keep::Retried(Duration::ZERO),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACK_OFF: Duration = Duration::from_secs(1);

    #[test]
    fn every_status_has_a_treatment() {
        for status in 0..=u16::MAX {
            for effects in [Effects::Marked, Effects::Assumed, Effects::Repeatable] {
                for marked in [false, true] {
                    let keep = Keep::by_status(status, effects, marked, BACK_OFF);
                    let fault = status == 408 || status >= 500;
                    let expected = match status {
                        _ if fault && effects == Effects::Repeatable => Keep::Retried(Duration::ZERO),
                        _ if fault && effects == Effects::Marked && !marked => Keep::Retried(BACK_OFF),
                        _ if fault => Keep::Unresolved,
                        200..=399 => Keep::Completed,
                        402 | 410 | 416..=421 | 423 | 424 | 426 | 427 | 430 | 432..=499 => Keep::Failed,
                        _ if marked => Keep::Failed,
                        _ => Keep::Released,
                    };
                    assert_eq!(keep, expected, "{status} {effects:?} {marked}");
                }
            }
        }
    }
}
