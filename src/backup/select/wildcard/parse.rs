//! Takes a component of a pattern to pieces.

use super::{Element, Member, Repeat, may_be_empty};

/// How many groups may lie within each other. Parsing recurses, and so does matching, which for each
/// `!(…)` within another goes over the name once more for each of its bytes.
const DEPTH: usize = 4;

/// Parses a component without slashes. The error says what is wrong with it.
pub(super) fn elements(component: &[u8]) -> Result<Vec<Element>, String> {
    parse(component, 0)
}

/// Parses a component, or an alternative that lies in `depth` groups.
fn parse(pattern: &[u8], depth: usize) -> Result<Vec<Element>, String> {
    if depth > DEPTH {
        return Err(format!("has more than {DEPTH} groups within each other"));
    }
    let mut elements = Vec::new();
    let mut rest = pattern;
    let mut groups_behind_star = Vec::new();
    while let [first, after @ ..] = rest {
        rest = after;
        if let Some(repeat) = repeat(*first)
            && let Some((alternatives, after)) = split_group(rest)
        {
            rest = after;
            let behind_star = ends_in_star(&elements);
            check_group(repeat, &alternatives, rest, behind_star)?;
            if behind_star && !repeat.is_optional() {
                check_start(&elements)?;
                groups_behind_star.push(elements.len());
            }
            let alternatives = alternatives
                .into_iter()
                .map(|text| parse(text, depth + 1))
                .collect::<Result<_, _>>()?;
            elements.push(Element::Group { repeat, alternatives });
            continue;
        }
        // No group, then. glibc may take these for one all the same.
        if let Some(repeat) = repeat(*first)
            && rest.first() == Some(&b'(')
            && (depth > 0 || (repeat.is_optional() && ends_in_star(&elements)))
        {
            return Err("has a group that is not closed; write \\( for a plain (".into());
        }
        elements.push(match first {
            b'?' => Element::Any,
            b'*' => Element::Star,
            b'\\' => match rest {
                [escaped, after @ ..] => {
                    rest = after;
                    Element::Byte(*escaped)
                }
                [] => return Err("has a backslash with nothing behind it to escape".into()),
            },
            b'[' => match parse_bracket(rest)? {
                Some((bracket, after)) => {
                    check_start(&elements)?;
                    rest = after;
                    bracket
                }
                None if depth > 0 => {
                    return Err("has a [ in a group that is not closed before | or )".into());
                }
                None => Element::Byte(b'['),
            },
            _ => Element::Byte(*first),
        });
    }
    // glibc would have these begin before the end of the name.
    if groups_behind_star.iter().any(|&at| elements.iter().skip(at).all(may_be_empty)) {
        return Err("has a group behind a * that may be empty; use ?(…) or leave it out".into());
    }
    Ok(elements)
}

/// Whether a group behind these would be one behind a `*`.
fn ends_in_star(elements: &[Element]) -> bool {
    for element in elements.iter().rev() {
        match element {
            Element::Star => return true,
            Element::Any => {}
            Element::Group { repeat, alternatives } => {
                if alternatives.iter().any(|alternative| ends_in_star(alternative)) {
                    return true;
                }
                if !repeat.is_optional() {
                    return false;
                }
            }
            Element::Byte(_) | Element::Bracket { .. } => return false,
        }
    }
    false
}

/// Refuses `*?` at the start where brackets or a group follow: glibc has it that these, too, stand
/// where a leading `.` would.
fn check_start(before: &[Element]) -> Result<(), String> {
    let star = |element: &Element| ends_in_star(std::slice::from_ref(element));
    let mut run = before.iter().skip_while(|element| may_be_empty(element) && !star(element));
    let runs = match run.next() {
        Some(Element::Star) => run.any(|element| !matches!(element, Element::Star)),
        Some(first) => star(first),
        None => false,
    };
    if runs && ends_in_star(before) {
        return Err("has *? before brackets or a group; write ?*".into());
    }
    Ok(())
}

/// Refuses a group that glibc doesn't take for one, or takes for another.
fn check_group(
    repeat: Repeat,
    alternatives: &[&[u8]],
    rest: &[u8],
    behind_star: bool,
) -> Result<(), String> {
    let opens = |first: u8| self::repeat(first).is_some();
    // It puts each alternative before the rest, and parses both as one.
    let joined = matches!(repeat, Repeat::Once | Repeat::AtMostOnce) && rest.first() == Some(&b'(');
    if joined
        && alternatives
            .iter()
            .any(|text| text.last().is_some_and(|&last| opens(last) || last == b')'))
    {
        return Err("has a group whose end reads as the start of another".into());
    }
    // It passes over these, and over the character behind each group in them.
    let nested =
        |text: &&[u8]| text.windows(2).any(|pair| matches!(pair, &[first, b'('] if opens(first)));
    if behind_star && repeat.is_optional() && alternatives.iter().any(nested) {
        return Err("has a group in a ?(…) or *(…) behind a *".into());
    }
    Ok(())
}

fn repeat(first: u8) -> Option<Repeat> {
    Some(match first {
        b'@' => Repeat::Once,
        b'?' => Repeat::AtMostOnce,
        b'*' => Repeat::Any,
        b'+' => Repeat::AtLeastOnce,
        b'!' => Repeat::Never,
        _ => return None,
    })
}

/// Splits what follows a group's first character into the alternatives and what comes behind. A
/// backslash means nothing here: glibc doesn't look at it, either. `None` if it is no group.
fn split_group(text: &[u8]) -> Option<(Vec<&[u8]>, &[u8])> {
    let mut alternatives = Vec::new();
    let (&b'(', mut start) = (text.first()?, 1) else { return None };
    let (mut at, mut level) = (1, 0_usize);
    loop {
        match text.get(at)? {
            b'[' => {
                at += 1;
                if matches!(text.get(at)?, b'!' | b'^') {
                    at += 1;
                }
                // A ] that comes first belongs to the set.
                if text.get(at) == Some(&b']') {
                    at += 1;
                }
                at += text.get(at..)?.iter().position(|&byte| byte == b']')?;
            }
            b'|' if level == 0 => {
                alternatives.push(text.get(start..at)?);
                start = at + 1;
            }
            b')' if level == 0 => {
                alternatives.push(text.get(start..at)?);
                return Some((alternatives, text.get(at + 1..)?));
            }
            b')' => level -= 1,
            &first if repeat(first).is_some() && text.get(at + 1) == Some(&b'(') => level += 1,
            _ => {}
        }
        at += 1;
    }
}

/// Parses what follows a `[`. `None` if there is no `]`.
fn parse_bracket(text: &[u8]) -> Result<Option<(Element, &[u8])>, String> {
    let (negated, mut rest) = match text {
        [b'!' | b'^', rest @ ..] => (true, rest),
        _ => (false, text),
    };
    let mut members = Vec::new();
    loop {
        let (low, after) = match rest {
            [] => return Ok(None),
            [b']', after @ ..] if !members.is_empty() => {
                return Ok(Some((Element::Bracket { negated, members }, after)));
            }
            [b'[', b'=' | b'.', ..] => {
                return Err("has [= or [. in brackets, which is not supported; write \\[".into());
            }
            [b'[', b':', after @ ..] if let Some((class, after)) = class_name(after) => {
                members.push(Member::Class(class_test(class)?));
                rest = after;
                continue;
            }
            [b'\\', low, after @ ..] => (*low, after),
            [b'\\'] => return Err("has a backslash with nothing behind it to escape".into()),
            [low, after @ ..] => (*low, after),
        };
        let (high, after) = match after {
            [b'-'] => return Err("has a range in brackets that doesn't end".into()),
            [b'-', b']', ..] => (low, after),
            [b'-', b'[', b'.', ..] => {
                return Err("has [. in brackets, which is not supported; write \\[".into());
            }
            [b'-', b'\\', high, after @ ..] => (*high, after),
            [b'-', b'\\'] => {
                return Err("has a backslash with nothing behind it to escape".into());
            }
            [b'-', high, after @ ..] => (*high, after),
            _ => (low, after),
        };
        members.push(Member::Range(low, high));
        rest = after;
    }
}

/// The name of a class, which ends with `:]`, and what comes behind.
fn class_name(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = text.iter().position(|byte| !byte.is_ascii_lowercase())?;
    let after = text.get(end..)?.strip_prefix(b":]")?;
    Some((text.get(..end)?, after))
}

fn class_test(name: &[u8]) -> Result<fn(&u8) -> bool, String> {
    Ok(match name {
        b"alnum" => u8::is_ascii_alphanumeric,
        b"alpha" => u8::is_ascii_alphabetic,
        b"blank" => |byte| matches!(byte, b' ' | b'\t'),
        b"cntrl" => u8::is_ascii_control,
        b"digit" => u8::is_ascii_digit,
        b"graph" => u8::is_ascii_graphic,
        b"lower" => u8::is_ascii_lowercase,
        b"print" => |byte| matches!(byte, b' '..=b'~'),
        b"punct" => u8::is_ascii_punctuation,
        b"space" => |byte| matches!(byte, b' ' | b'\t'..=b'\r'),
        b"upper" => u8::is_ascii_uppercase,
        b"xdigit" => u8::is_ascii_hexdigit,
        _ => {
            let name = String::from_utf8_lossy(name);
            return Err(format!("has an unknown class of characters, [:{name}:]"));
        }
    })
}
