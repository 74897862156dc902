//! The meaning of an answer: success, refusal, a wish to wait.

use std::time::{Duration, UNIX_EPOCH};

use http::HeaderMap;
use nevertwice::{Clock, SystemClock};

use super::wire::Answer;

impl Answer {
    /// Returns whether the operation was accepted. A redirection tells of another address, apart
    /// from 303, which tells of the result.
    pub(super) fn is_success(&self) -> bool {
        (200..300).contains(&self.status) || self.status == 303
    }

    /// Returns whether it refuses what was sent. Statuses that tell of the caller, the address or
    /// the rate are none: they say nothing of keys.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(self.status, 400 | 409 | 412..=415 | 422 | 428 | 431)
    }

    /// Returns whether it tells to repeat the request later.
    pub(super) fn says_wait(&self) -> bool {
        matches!(self.status, 409 | 425 | 429) || self.status == 503 && self.retry_after().is_some()
    }

    /// Returns whether the service takes no request for now, whatever its key.
    pub(super) fn is_overload(&self) -> bool {
        self.status == 429 || self.status == 503 && self.retry_after().is_some()
    }

    /// Returns whether it is a failure that may be repeated later.
    pub(super) fn says_later(&self) -> bool {
        self.says_wait() || self.status >= 500 && self.retry_after().is_some()
    }

    /// The time that `Retry-After` tells, in seconds or as a date.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        retry_after(&self.headers)
    }
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(http::header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    // By the clock of the service, if it tells its time.
    let wall = UNIX_EPOCH + Duration::from_secs(SystemClock.wall().as_secs());
    let now = headers.get(http::header::DATE).and_then(|now| now.to_str().ok());
    let now = now.and_then(|now| httpdate::parse_http_date(now).ok()).unwrap_or(wall);
    Some(date.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(headers: &[(http::HeaderName, &str)]) -> Option<Duration> {
        let headers = headers.iter().map(|(name, value)| (name.clone(), value.parse().unwrap()));
        retry_after(&headers.collect())
    }

    #[test]
    fn retry_after_is_read_in_seconds_and_as_a_date() {
        use http::header::{DATE, RETRY_AFTER};
        assert_eq!(told(&[(RETRY_AFTER, "7")]), Some(Duration::from_secs(7)));
        let now = (DATE, "Fri, 31 Dec 1999 23:59:50 GMT");
        let later = (RETRY_AFTER, "Fri, 31 Dec 1999 23:59:59 GMT");
        assert_eq!(told(&[now, later.clone()]), Some(Duration::from_secs(9)));
        assert_eq!(told(&[later]), Some(Duration::ZERO));
        assert_eq!(told(&[(RETRY_AFTER, "soon")]), None);
        assert_eq!(told(&[]), None);
    }

    #[test]
    fn statuses_that_tell_nothing_of_a_key_are_neither_success_nor_refusal() {
        let answer = |status| Answer {
            status,
            headers: HeaderMap::new(),
            body: bytes::Bytes::new(),
            took: Duration::ZERO,
        };
        for status in [301, 302, 307, 308, 401, 403, 404, 429, 500] {
            assert!(!answer(status).is_success() && !answer(status).is_refusal(), "{status}");
        }
        assert!(answer(201).is_success() && answer(303).is_success());
        assert!(answer(400).is_refusal() && answer(422).is_refusal());
    }
}
