//! Names of nodes, of which there are as many as files that the kernel knows.

use std::ops::Deref;

/// Longest name that is kept in place. Four of five in a tree of packages are no longer.
const SHORT: usize = 22;

/// A name, in 24 bytes and nothing else unless it is long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Name(Kept);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kept {
    /// Zeros follow the name.
    Here {
        len: u8,
        bytes: [u8; SHORT],
    },
    Elsewhere(Box<[u8]>),
}

impl From<&[u8]> for Name {
    fn from(name: &[u8]) -> Self {
        let mut bytes = [0; SHORT];
        Self(match (bytes.get_mut(..name.len()), u8::try_from(name.len())) {
            (Some(place), Ok(len)) => {
                place.copy_from_slice(name);
                Kept::Here { len, bytes }
            }
            _ => Kept::Elsewhere(name.into()),
        })
    }
}

impl Deref for Name {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Kept::Here { len, bytes } => bytes.get(..usize::from(*len)).unwrap_or(bytes),
            Kept::Elsewhere(bytes) => bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_any_length_is_kept_as_it_is() {
        for len in 0..=300 {
            let name: Vec<u8> = (0..len).map(|n| (n % 251) as u8).collect();
            let kept = Name::from(&*name);
            assert_eq!(*kept, *name);
            assert_eq!(kept, kept.clone());
            assert_ne!(kept, Name::from(&[&*name, b"\0"].concat()[..]));
        }
    }
}
