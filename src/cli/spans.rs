//! Time spans as they are typed.
//!
//! One table for every option that takes a time: `90s`, `5m`, `12h`, `30d`, `2w`. Where the option has
//! always been a number of seconds, a bare number still is. Units are lowercase: `5M` is an error, since
//! it could be minutes, months or megabytes.

use std::time::Duration;

/// A time span: a number with one of the suffixes s, m, h, d and w.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let seconds: u64 = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        "w" => 604_800,
        "" if number.parse::<u64>().is_ok() => {
            return Err("a number needs a unit behind it: s, m, h, d or w".into());
        }
        "" => 1,
        _ => return Err(format!("{unit:?} is no unit of time; s, m, h, d and w are")),
    };
    if number.is_empty() {
        return Err(format!("{text:?} is no time span"));
    }
    // Digits alone: what does not fit is too large.
    let seconds = number.parse().ok().and_then(|number: u64| number.checked_mul(seconds));
    seconds.map(Duration::from_secs).ok_or(format!("{text:?} is too long"))
}

/// The same, or a bare number of seconds. Gives seconds.
pub(crate) fn parse_seconds(text: &str) -> Result<u64, String> {
    match text.parse() {
        // Not `+5`, which a number of Rust's may be.
        Ok(seconds) if text.bytes().all(|byte| byte.is_ascii_digit()) => Ok(seconds),
        _ => parse_duration(text).map(|span| span.as_secs()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_spans_have_units_and_seconds_may_do_without() {
        for (text, span, seconds) in [
            ("0s", Some(0), Some(0)),
            ("45s", Some(45), Some(45)),
            ("90m", Some(5400), Some(5400)),
            ("12h", Some(43_200), Some(43_200)),
            ("30d", Some(2_592_000), Some(2_592_000)),
            ("2w", Some(1_209_600), Some(1_209_600)),
            ("0", None, Some(0)),
            ("30", None, Some(30)),
            ("18446744073709551615", None, Some(u64::MAX)),
            ("18446744073709551616", None, None),
            ("30500568904943w", Some(18_446_744_073_709_526_400), Some(18_446_744_073_709_526_400)),
            ("30500568904944w", None, None),
            ("99999999999999999w", None, None),
            ("", None, None),
            ("s", None, None),
            ("d", None, None),
            ("-1d", None, None),
            ("-1", None, None),
            ("+1", None, None),
            ("1.5d", None, None),
            ("0.5", None, None),
            // Bytes, or who knows.
            ("5M", None, None),
            ("5K", None, None),
            ("5G", None, None),
            ("5MiB", None, None),
            ("5S", None, None),
            ("5H", None, None),
            ("5ms", None, None),
            ("5min", None, None),
            ("1h30m", None, None),
            ("5 m", None, None),
            ("5m ", None, None),
        ] {
            assert_eq!(parse_duration(text).ok().map(|span| span.as_secs()), span, "{text}");
            assert_eq!(parse_seconds(text).ok(), seconds, "{text}");
        }
        let refused = parse_seconds("5M").unwrap_err();
        assert!(refused.contains("\"M\" is no unit of time"), "{refused}");
    }
}
