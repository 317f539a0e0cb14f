//! Matches one name against one component of a pattern, as glibc's `fnmatch` does with
//! `FNM_PERIOD | FNM_EXTMATCH` in the C locale. That is what mksquashfs calls.
//!
//! | | |
//! | --- | --- |
//! | `*`, `?` | any bytes, one byte |
//! | `[ab]`, `[a-z]`, `[!a]`, `[^a]`, `[[:digit:]]` | a byte of the set, or not of it |
//! | `@(a\|b)`, `?(a\|b)`, `*(a\|b)`, `+(a\|b)` | one of the alternatives: once, at most once, any number of times, at least once |
//! | `!(a\|b)` | anything but what one of the alternatives matches |
//! | `\x` | `x` itself |
//!
//! A `.` that begins a name is matched by none of `*`, `?` and `[…]`. A `[` or `(` that is never
//! closed is an ordinary character.
//!
//! Globset and regex have no `!(…)`, and take a leading `.` and half-open brackets otherwise.
//! What is matched here is a set of positions and no single one, so that there is no backtracking:
//! a pattern cannot take exponential time, as it can in glibc.
//!
//! Some patterns are refused: those that could never match anything, `[=a=]` and `[.a.]`, and those
//! of which glibc's answer follows from how its code cuts strings and not from the pattern. The
//! last are alternatives that are no patterns by themselves, and some groups behind a `*`.

/// How many groups may lie within each other. Parsing recurses, and so does matching.
const DEPTH: usize = 8;

/// One component of a pattern: what stands between two slashes.
#[derive(Clone, Debug)]
pub(super) struct Wildcard {
    elements: Vec<Element>,
    /// The bytes that the pattern's end stands for itself. Most names are told apart by these.
    tail: Vec<u8>,
    /// Whether the tail is all there is.
    literal: bool,
}

#[derive(Clone, Debug)]
enum Element {
    Byte(u8),
    /// `?`
    Any,
    /// `*`
    Star,
    Bracket {
        negated: bool,
        members: Vec<Member>,
    },
    Group {
        repeat: Repeat,
        alternatives: Vec<Vec<Element>>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Repeat {
    Once,
    AtMostOnce,
    Any,
    AtLeastOnce,
    Never,
}

impl Repeat {
    /// Whether the group may be left out, whatever is in it.
    fn is_optional(self) -> bool {
        matches!(self, Self::AtMostOnce | Self::Any)
    }
}

#[derive(Clone, Debug)]
enum Member {
    /// Both ends belong to it.
    Range(u8, u8),
    Class(fn(&u8) -> bool),
}

impl Wildcard {
    /// Parses a component without slashes. The error says what is wrong with it.
    pub(super) fn parse(component: &[u8]) -> Result<Self, String> {
        let elements = parse(component, 0)?;
        let mut tail: Vec<u8> = (elements.iter().rev())
            .map_while(|element| match element {
                Element::Byte(byte) => Some(*byte),
                _ => None,
            })
            .collect();
        tail.reverse();
        let literal = tail.len() == elements.len();
        Ok(Self { elements, tail, literal })
    }

    /// The name, if there is only one that matches.
    pub(super) fn as_name(&self) -> Option<&[u8]> {
        self.literal.then_some(&self.tail)
    }

    pub(super) fn matches(&self, name: &[u8]) -> bool {
        if self.literal {
            return name == self.tail;
        }
        name.ends_with(&self.tail) && {
            let ends = Name(name).walk(&self.elements, &Name(name).only(0));
            ends.last() == Some(&true)
        }
    }
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
    // A z is in no class's name, and glibc takes none.
    let end = text.iter().position(|byte| !(b'a'..b'z').contains(byte))?;
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

/// A name that is being matched.
#[derive(Clone, Copy)]
struct Name<'a>(&'a [u8]);

/// Whether a match may have come to each position in a name. There is one more than bytes.
type Positions = Vec<bool>;

impl Name<'_> {
    fn none(self) -> Positions {
        vec![false; self.0.len() + 1]
    }

    fn only(self, position: usize) -> Positions {
        (0..=self.0.len()).map(|at| at == position).collect()
    }

    /// Whether the byte at `position` is one that wildcards don't match.
    fn hidden(self, position: usize) -> bool {
        position == 0 && self.0.first() == Some(&b'.')
    }

    /// Where all of `elements` may end if they begin at one of `from`.
    fn walk(self, elements: &[Element], from: &Positions) -> Positions {
        let mut at = from.clone();
        for element in elements {
            at = self.step(element, &at);
        }
        at
    }

    fn step(self, element: &Element, from: &Positions) -> Positions {
        match element {
            Element::Byte(byte) => self.advance(from, |_, found| found == byte),
            Element::Any => self.advance(from, |position, _| !self.hidden(position)),
            Element::Bracket { negated, members } => self.advance(from, |position, found| {
                let member = members.iter().any(|member| match member {
                    Member::Range(low, high) => (low..=high).contains(&found),
                    Member::Class(test) => test(found),
                });
                member != *negated && !self.hidden(position)
            }),
            Element::Star => {
                let starts = from.iter().enumerate();
                let mut reached = false;
                starts
                    .map(|(position, &start)| {
                        reached |= start && !self.hidden(position);
                        reached
                    })
                    .collect()
            }
            Element::Group { repeat, alternatives } => match repeat {
                Repeat::Once => self.once(alternatives, from),
                Repeat::AtMostOnce => union(from, &self.once(alternatives, from)),
                Repeat::Any => union(from, &self.repeated(alternatives, from)),
                Repeat::AtLeastOnce => self.repeated(alternatives, from),
                Repeat::Never => {
                    let starts = (0..).zip(from).filter(|(_, start)| **start);
                    starts.fold(self.none(), |ends, (start, _)| {
                        let matched = self.separately(alternatives, &self.only(start));
                        let others = (0..).zip(matched).map(|(at, end)| at >= start && !end);
                        union(&ends, &others.collect())
                    })
                }
            },
        }
    }

    /// The positions behind the bytes that fit.
    fn advance(self, from: &Positions, fits: impl Fn(usize, &u8) -> bool) -> Positions {
        let bytes = from.iter().zip(self.0).enumerate();
        let fitting = bytes.map(|(position, (&start, byte))| start && fits(position, byte));
        std::iter::once(false).chain(fitting).collect()
    }

    fn once(self, alternatives: &[Vec<Element>], from: &Positions) -> Positions {
        alternatives
            .iter()
            .fold(self.none(), |ends, alternative| union(&ends, &self.walk(alternative, from)))
    }

    /// The same where each alternative has a stretch of the name to itself. If that is empty, there
    /// is no leading `.` in it.
    fn separately(self, alternatives: &[Vec<Element>], from: &Positions) -> Positions {
        let mut ends = self.once(alternatives, from);
        if let (Some(end), Some(true)) = (ends.first_mut(), from.first()) {
            *end |= alternatives.iter().any(|alternative| alternative.iter().all(may_be_empty));
        }
        ends
    }

    fn repeated(self, alternatives: &[Vec<Element>], from: &Positions) -> Positions {
        let mut ends = self.separately(alternatives, from);
        loop {
            let more = union(&ends, &self.separately(alternatives, &ends));
            if more == ends {
                return ends;
            }
            ends = more;
        }
    }
}

fn union(one: &Positions, other: &Positions) -> Positions {
    one.iter().zip(other).map(|(one, other)| one | other).collect()
}

fn may_be_empty(element: &Element) -> bool {
    let Element::Group { repeat, alternatives } = element else {
        return matches!(element, Element::Star);
    };
    let one = alternatives.iter().any(|alternative| alternative.iter().all(may_be_empty));
    match repeat {
        Repeat::Once | Repeat::AtLeastOnce => one,
        Repeat::AtMostOnce | Repeat::Any => true,
        Repeat::Never => !one,
    }
}
