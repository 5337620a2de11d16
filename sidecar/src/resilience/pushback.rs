//! What an answer says about when to come: `Retry-After` (RFC 9110 section 10.2.3) and gRPC's `grpc-retry-pushback-ms`
//! (<https://github.com/grpc/proposal/blob/master/A6-client-retries.md>, "Pushback").

use std::time::{Duration, SystemTime};

use http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode,
    header::{DATE, RETRY_AFTER},
};

const GRPC_PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

/// What a server said about when to come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushback {
    /// It is overloaded, and wants no request for this long.
    Endpoint(Duration),
    /// This call may be made again after this long.
    Call(Duration),
    /// This call is not to be made again.
    Never,
}

impl Pushback {
    /// What the head of an answer says, if it says anything: `Retry-After` counts on 429 (RFC 6585 section 4) and 503, and
    /// on nothing else that an overloaded server sends; the pushback counts where a gRPC call was answered by its status
    /// alone. A `Retry-After` that is neither seconds nor a date says nothing; a pushback that is no number forbids, as
    /// A6 has it.
    pub fn of(status: StatusCode, headers: &HeaderMap, grpc: bool, now: SystemTime) -> Option<Self> {
        if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            return retry_after(headers.get(RETRY_AFTER)?, headers.get(DATE), now).map(Self::Endpoint);
        }
        if !grpc || !headers.contains_key("grpc-status") {
            return None;
        }
        let text = headers.get(GRPC_PUSHBACK)?.to_str().ok().map(str::trim);
        // A6 knows 32 bits; what is longer is forbidden as well.
        let milliseconds = text.and_then(|t| t.parse::<i32>().ok()).and_then(|n| u64::try_from(n).ok());
        Some(milliseconds.map_or(Self::Never, |n| Self::Call(Duration::from_millis(n))))
    }
}

/// Parses `Retry-After`. A date is counted from the answer's own `Date`, so that clocks may differ; one that is past is
/// zero.
fn retry_after(value: &HeaderValue, sent: Option<&HeaderValue>, now: SystemTime) -> Option<Duration> {
    let text = value.to_str().ok()?.trim();
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    let sent = sent.and_then(|v| v.to_str().ok()).and_then(|v| httpdate::parse_http_date(v).ok());
    Some(date.duration_since(sent.unwrap_or(now)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TODAY: Duration = Duration::from_secs(784_111_777); // Sun, 06 Nov 1994 08:49:37 GMT

    fn said(status: u16, headers: &[(&'static str, &'static str)], grpc: bool) -> Option<Pushback> {
        let named = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        let status = StatusCode::from_u16(status).unwrap_or_default();
        Pushback::of(status, &headers.iter().map(named).collect(), grpc, SystemTime::UNIX_EPOCH + TODAY)
    }

    fn endpoint(seconds: u64) -> Option<Pushback> {
        Some(Pushback::Endpoint(Duration::from_secs(seconds)))
    }

    #[test]
    fn retry_after_is_seconds_or_a_date_of_any_form() {
        for (text, wanted) in [
            ("0", endpoint(0)),
            ("120", endpoint(120)),
            (" 7 ", endpoint(7)),
            ("99999999999999999999999", endpoint(u64::MAX)),
            ("Sun, 06 Nov 1994 08:50:07 GMT", endpoint(30)),
            ("Sunday, 06-Nov-94 08:50:07 GMT", endpoint(30)),
            ("Sun Nov  6 08:50:07 1994", endpoint(30)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", endpoint(0)),
            ("Tue, 06 Nov 1984 08:49:37 GMT", endpoint(0)),
            ("", None),
            ("-1", None),
            ("1.5", None),
            ("+3", None),
            ("3s", None),
            ("soon", None),
            ("Sun, 36 Nov 1994 08:50:07 GMT", None),
        ] {
            for status in [429, 503] {
                assert_eq!(said(status, &[("retry-after", text)], false), wanted, "{status} {text:?}");
            }
        }
    }

    #[test]
    fn a_date_is_counted_from_the_clock_that_wrote_it() {
        let date = ("retry-after", "Sun, 06 Nov 1994 09:00:10 GMT");
        assert_eq!(said(503, &[date, ("date", "Sun, 06 Nov 1994 09:00:00 GMT")], false), endpoint(10));
        assert_eq!(said(503, &[date, ("date", "yesterday")], false), endpoint(10 * 60 + 33));
    }

    #[test]
    fn other_answers_say_nothing_of_an_endpoint() {
        for status in [200, 301, 413, 500, 502, 504] {
            assert_eq!(said(status, &[("retry-after", "5")], true), None, "{status}");
        }
        assert_eq!(said(503, &[], false), None);
    }

    #[test]
    fn a_pushback_delays_the_call_or_forbids_it() {
        let call = |ms| Some(Pushback::Call(Duration::from_millis(ms)));
        for (text, wanted) in [
            ("0", call(0)),
            ("250", call(250)),
            ("-1", Some(Pushback::Never)),
            ("", Some(Pushback::Never)),
            ("soon", Some(Pushback::Never)),
            ("99999999999", Some(Pushback::Never)),
        ] {
            let headers = [("grpc-status", "14"), ("grpc-retry-pushback-ms", text)];
            assert_eq!(said(200, &headers, true), wanted, "{text:?}");
            assert_eq!(said(200, &headers, false), None, "{text:?} of what is no call");
        }
        assert_eq!(said(200, &[("grpc-retry-pushback-ms", "-1")], true), None, "the call has not ended yet");
    }
}
