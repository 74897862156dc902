//! gRPC over HTTP/2: answers in trailers, and outcomes by `grpc-status`.

use super::problem::Problem;

/// Returns true for the content types of gRPC, such as `application/grpc+proto`.
pub(crate) fn is_grpc(content_type: &[u8]) -> bool {
    begins(content_type, b"application/grpc")
}

/// Returns true for the content types of gRPC-Web, whose trailers are a part of the body.
pub(crate) fn is_grpc_web(content_type: &[u8]) -> bool {
    begins(content_type, b"application/grpc-web")
}

fn begins(content_type: &[u8], with: &[u8]) -> bool {
    content_type.split_at_checked(with.len()).is_some_and(|(start, _)| start.eq_ignore_ascii_case(with))
}

const UNKNOWN: u32 = 2;

/// Returns the HTTP status that has the same meaning for the record as a `grpc-status` (`None`: the
/// response had none).
pub(crate) fn http_status(grpc_status: Option<&[u8]>) -> u16 {
    let code = grpc_status.and_then(|code| std::str::from_utf8(code).ok()?.trim().parse().ok());
    match code.unwrap_or(UNKNOWN) {
        0 => 200,
        // CANCELLED, UNKNOWN, DEADLINE_EXCEEDED, INTERNAL, UNAVAILABLE, DATA_LOSS; and
        // OUT_OF_RANGE, which libraries answer for a message over their limit, also one behind the
        // effect
        1 | 2 | 4 | 11 | 13..=15 => 500,
        3 => 400,
        5 => 404,
        7 => 403,
        8 => 429,
        16 => 401,
        // ALREADY_EXISTS, FAILED_PRECONDITION, ABORTED, UNIMPLEMENTED
        6 | 9 | 10 | 12 => 400,
        _ => 500,
    }
}

/// Returns the `grpc-status` of a problem.
pub(crate) fn status(problem: &Problem) -> u32 {
    match problem {
        Problem::MissingKey | Problem::MalformedKey(_) | Problem::BodyIncomplete | Problem::Mismatch => 3,
        Problem::ResponseNotKept(_) => 6,
        Problem::BodyTooLarge(_) => 8,
        Problem::Unresolved => 9,
        Problem::Unsupported => 12,
        Problem::NoCaller => 13,
        Problem::InProgress | Problem::Unavailable | Problem::Overloaded => 14,
    }
}

/// A count of the messages of a body, fed with its data in pieces of any size.
#[derive(Debug, Default)]
pub(crate) struct Messages {
    /// The number of messages that began.
    pub(crate) begun: u32,
    /// The bytes of the prefix that were seen: a flag and the length of the message.
    prefix: Vec<u8>,
    /// The bytes of the message that are still to come.
    left: u64,
}

impl Messages {
    pub(crate) fn feed(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            if self.left > 0 {
                let now = usize::try_from(self.left).map_or(data.len(), |left| left.min(data.len()));
                self.left -= now as u64;
                data = &data[now..];
                continue;
            }
            if self.prefix.is_empty() {
                self.begun += 1;
            }
            self.prefix.push(data[0]);
            data = &data[1..];
            if let [_, a, b, c, d] = self.prefix[..] {
                self.left = u32::from_be_bytes([a, b, c, d]).into();
                self.prefix.clear();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_counted_in_pieces_of_any_size() {
        let stream = [&[0, 0, 0, 0, 3, 1, 2, 3][..], &[0, 0, 0, 0, 0], &[1, 0, 0, 0, 1, 9]].concat();
        for size in 1..=stream.len() {
            let mut messages = Messages::default();
            stream.chunks(size).for_each(|piece| messages.feed(piece));
            assert_eq!((messages.begun, messages.left), (3, 0), "pieces of {size}");
        }
        let mut one = Messages::default();
        one.feed(&stream[..8]);
        assert_eq!(one.begun, 1);
    }

    #[test]
    fn a_status_decides_and_a_missing_one_is_a_fault() {
        assert_eq!(http_status(Some(b"0")), 200);
        for fault in [None, Some(&b"x"[..]), Some(b"2"), Some(b"14"), Some(b"99"), Some(b"-1")] {
            assert_eq!(http_status(fault), 500, "{fault:?}");
        }
        assert_eq!(http_status(Some(b"3")), 400);
        assert!(is_grpc(b"application/grpc+proto") && !is_grpc(b"application/json"));
        assert!(is_grpc_web(b"Application/gRPC-Web-Text") && !is_grpc_web(b"application/grpc+proto"));
    }
}
