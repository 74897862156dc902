//! A check: a name, a claim, its sources and an outcome.

use async_trait::async_trait;
use serde::Serialize;

use super::checks;
use super::probe::Probe;

/// A check of an API.
#[async_trait(?Send)]
pub(super) trait Check {
    fn about(&self) -> About;

    /// Runs it. An early end and a normal one say the same: a verdict.
    async fn run(&self, probe: &Probe) -> Step<Verdict>;
}

/// A value, or the verdict that ends the check.
pub(super) type Step<T> = Result<T, Verdict>;

/// A description of a check.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct About {
    pub(super) name: &'static str,
    /// The claim that holds of a good service.
    pub(super) says: &'static str,
    pub(super) sources: &'static [Source],
}

/// A place in a document.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Source {
    pub(super) document: &'static str,
    pub(super) section: &'static str,
    pub(super) url: &'static str,
}

/// The outcome of a check, from best to worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Outcome {
    Pass,
    /// The claim could be neither shown nor refuted.
    NotShown,
    /// It does not hold, but documents only recommend it.
    Advice,
    Fail,
}

impl Outcome {
    pub(super) fn name(self) -> &'static str {
        match self {
            Outcome::Pass => "pass",
            Outcome::NotShown => "not shown",
            Outcome::Advice => "advice",
            Outcome::Fail => "fail",
        }
    }
}

/// An outcome and its reason.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Verdict {
    pub(super) outcome: Outcome,
    pub(super) because: String,
}

impl Verdict {
    fn new(outcome: Outcome, because: impl Into<String>) -> Verdict {
        Verdict { outcome, because: because.into() }
    }

    pub(super) fn pass(because: impl Into<String>) -> Verdict {
        Verdict::new(Outcome::Pass, because)
    }

    pub(super) fn fail(because: impl Into<String>) -> Verdict {
        Verdict::new(Outcome::Fail, because)
    }

    pub(super) fn advice(because: impl Into<String>) -> Verdict {
        Verdict::new(Outcome::Advice, because)
    }

    pub(super) fn not_shown(because: impl Into<String>) -> Verdict {
        Verdict::new(Outcome::NotShown, because)
    }
}

/// Ends the check as failed unless the condition holds.
pub(super) fn ensure(holds: bool, because: impl FnOnce() -> String) -> Step<()> {
    if holds { Ok(()) } else { Err(Verdict::fail(because())) }
}

const fn draft(section: &'static str, url: &'static str) -> Source {
    Source { document: "draft-ietf-httpapi-idempotency-key-header", section, url }
}

const BASE: &str = "https://datatracker.ietf.org/doc/html/draft-ietf-httpapi-idempotency-key-header";

pub(super) const SYNTAX: Source = draft("2.1 Syntax", BASE);
pub(super) const UNIQUENESS: Source = draft("2.2 Uniqueness of Idempotency Key", BASE);
pub(super) const EXPIRY: Source = draft("2.3 Idempotency Key Validity and Expiry", BASE);
pub(super) const ENFORCEMENT: Source = draft("2.6 Idempotency Enforcement Scenarios", BASE);
pub(super) const ERRORS: Source = draft("2.7 Error Scenarios", BASE);
pub(super) const SECURITY: Source = draft("Security Considerations", BASE);
pub(super) const STRIPE: Source = Source {
    document: "Stripe API reference",
    section: "Idempotent requests",
    url: "https://docs.stripe.com/api/idempotent_requests",
};
pub(super) const STRIPE_ERRORS: Source = Source {
    document: "Stripe documentation",
    section: "Advanced error handling",
    url: "https://docs.stripe.com/error-low-level",
};
pub(super) const PROBLEMS: Source = Source {
    document: "RFC 9457",
    section: "Problem Details for HTTP APIs",
    url: "https://www.rfc-editor.org/rfc/rfc9457",
};
pub(super) const RETRY_AFTER: Source = Source {
    document: "RFC 9110",
    section: "10.2.3 Retry-After",
    url: "https://www.rfc-editor.org/rfc/rfc9110#section-10.2.3",
};
pub(super) const METHODS: Source = Source {
    document: "RFC 9110",
    section: "9.2.2 Idempotent Methods",
    url: "https://www.rfc-editor.org/rfc/rfc9110#section-9.2.2",
};
pub(super) const CONNECTION: Source = Source {
    document: "RFC 9110",
    section: "7.6.1 Connection",
    url: "https://www.rfc-editor.org/rfc/rfc9110#section-7.6.1",
};
pub(super) const VERSIONS: Source = Source {
    document: "RFC 9110",
    section: "2.5 Protocol Version",
    url: "https://www.rfc-editor.org/rfc/rfc9110#section-2.5",
};
pub(super) const INCOMPLETE: Source = Source {
    document: "RFC 9112",
    section: "8 Handling Incomplete Messages",
    url: "https://www.rfc-editor.org/rfc/rfc9112#section-8",
};
pub(super) const COOKIES: Source = Source {
    document: "RFC 9111",
    section: "7.3 Caching of Sensitive Information",
    url: "https://www.rfc-editor.org/rfc/rfc9111#section-7.3",
};
pub(super) const ITEMS: Source = Source {
    document: "RFC 9651",
    section: "4.2 Parsing Structured Fields",
    url: "https://www.rfc-editor.org/rfc/rfc9651#section-4.2",
};

/// All checks, in the order in which they run.
pub(super) fn all() -> Vec<Box<dyn Check>> {
    vec![
        Box::new(checks::replay::Same),
        Box::new(checks::replay::Marked),
        Box::new(checks::copies::Simultaneous),
        Box::new(checks::replay::OtherPayload),
        Box::new(checks::keys::Missing),
        Box::new(checks::keys::Empty),
        Box::new(checks::keys::Long),
        Box::new(checks::keys::Quoted),
        Box::new(checks::keys::Doubled),
        Box::new(checks::callers::OtherCaller),
        Box::new(checks::cuts::AfterRequest),
        Box::new(checks::cuts::InRequest),
        Box::new(checks::cuts::InAnswer),
        Box::new(checks::cuts::ClientTimeOut),
        Box::new(checks::failures::FirstTry),
        Box::new(checks::headers::Cookies),
        Box::new(checks::headers::HopByHop),
        Box::new(checks::headers::Expiry),
        Box::new(checks::protocol::Get),
        Box::new(checks::protocol::Http2),
        Box::new(checks::failures::Crash),
    ]
}
