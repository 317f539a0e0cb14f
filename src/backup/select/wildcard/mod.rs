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
//! What is matched here is a set of positions and no single one: there is no backtracking, which in
//! glibc takes exponential time.
//!
//! Some patterns are refused: those that could never match anything, `[=a=]` and `[.a.]`, and those
//! of which glibc's answer follows from how its code cuts strings and not from the pattern. The
//! last are alternatives that are no patterns by themselves, and some groups behind a `*`.

mod parse;

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
        let elements = parse::elements(component)?;
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
            if !at.contains(&true) {
                break;
            }
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
