//! LZO1X, the format the kernel describes in `Documentation/staging/lzo.rst`.
//!
//! Written here because the crates there either bind C or grow their output without bound.

/// The bytes `stored` decodes to, at most `limit`.
pub(super) fn decode(stored: &[u8], limit: usize) -> Result<Vec<u8>, &'static str> {
    let mut input = Input(stored);
    let mut out = Output { bytes: Vec::with_capacity(limit), limit };
    // How many literals the last instruction copied: 0 to 3, or 4 for "a long run". The meaning of
    // the instructions below 16 depends on it.
    let mut literals = 0;
    match input.0.first() {
        Some(17) => return Err("lzo: a versioned stream"),
        Some(&byte @ 18..) => {
            input.byte()?;
            let len = usize::from(byte) - 17;
            out.literals(&mut input, len)?;
            literals = len.min(4);
        }
        _ => {}
    }
    loop {
        let instruction = usize::from(input.byte()?);
        let (len, distance, next) = match instruction {
            0..16 if literals == 0 => {
                let len = 3 + input.length(instruction, 15)?;
                out.literals(&mut input, len)?;
                literals = 4;
                continue;
            }
            0..16 => {
                let high = usize::from(input.byte()?) << 2;
                let distance = high + (instruction >> 2) + 1;
                match literals {
                    4 => (3, distance + 2048, instruction & 3),
                    _ => (2, distance, instruction & 3),
                }
            }
            16..32 => {
                let len = 2 + input.length(instruction & 7, 7)?;
                let word = input.word()?;
                let distance = 0x4000 + ((instruction & 8) << 11) + (word >> 2);
                if distance == 0x4000 {
                    break;
                }
                (len, distance, word & 3)
            }
            32..64 => {
                let len = 2 + input.length(instruction & 31, 31)?;
                let word = input.word()?;
                (len, (word >> 2) + 1, word & 3)
            }
            _ => {
                let high = usize::from(input.byte()?) << 3;
                let distance = high + ((instruction >> 2) & 7) + 1;
                let len = match instruction {
                    64..128 => 3 + ((instruction >> 5) & 1),
                    _ => 5 + ((instruction >> 5) & 3),
                };
                (len, distance, instruction & 3)
            }
        };
        out.copy(distance, len)?;
        out.literals(&mut input, next)?;
        literals = next;
    }
    if input.0.is_empty() { Ok(out.bytes) } else { Err("lzo: bytes after the end of the stream") }
}

const CUT_SHORT: &str = "lzo: the stream is cut short";

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> Result<u8, &'static str> {
        let (&first, rest) = self.0.split_first().ok_or(CUT_SHORT)?;
        self.0 = rest;
        Ok(first)
    }

    fn word(&mut self) -> Result<usize, &'static str> {
        Ok(usize::from(u16::from_le_bytes([self.byte()?, self.byte()?])))
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], &'static str> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(CUT_SHORT)?;
        self.0 = rest;
        Ok(taken)
    }

    /// `bits` if it isn't zero; else `base` and the number that follows, in which each zero byte
    /// counts 255. It cannot overflow: the input has far fewer bytes than 2^64 / 255.
    fn length(&mut self, bits: usize, base: usize) -> Result<usize, &'static str> {
        if bits != 0 {
            return Ok(bits);
        }
        let mut len = base;
        loop {
            match self.byte()? {
                0 => len += 255,
                last => return Ok(len + usize::from(last)),
            }
        }
    }
}

struct Output {
    bytes: Vec<u8>,
    limit: usize,
}

impl Output {
    fn check_room(&self, len: usize) -> Result<(), &'static str> {
        if len > self.limit - self.bytes.len() {
            return Err("lzo: it decodes to more than a block");
        }
        Ok(())
    }

    fn literals(&mut self, input: &mut Input<'_>, len: usize) -> Result<(), &'static str> {
        self.check_room(len)?;
        self.bytes.extend_from_slice(input.take(len)?);
        Ok(())
    }

    /// Appends `len` bytes from `distance` back, which may run into what it appends.
    fn copy(&mut self, distance: usize, len: usize) -> Result<(), &'static str> {
        self.check_room(len)?;
        let start = self
            .bytes
            .len()
            .checked_sub(distance)
            .ok_or("lzo: a match reaches back before the block")?;
        let mut left = len;
        // Each pass doubles what repeats, so that a run of one byte is not copied bytewise.
        while left > 0 {
            let take = left.min(self.bytes.len() - start);
            self.bytes.extend_from_within(start..start + take);
            left -= take;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> Vec<Vec<u8>> {
        let text = include_bytes!("lzo.rs").to_vec();
        let noise: Vec<u8> = (0u32..70_000)
            .scan(1u32, |state, _| {
                *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                Some((*state >> 24) as u8)
            })
            .collect();
        let far = [&noise[..40_000], &noise[..40_000], &text[..]].concat();
        vec![vec![0; 131_072], b"a".to_vec(), text, noise, far]
    }

    #[test]
    fn what_another_encoder_wrote_is_read() {
        for sample in samples() {
            let stored = lzokay_native::compress(&sample).unwrap();
            assert_eq!(decode(&stored, sample.len()).unwrap(), sample);
        }
    }

    #[test]
    fn a_stream_over_the_limit_cut_short_or_padded_is_refused() {
        for sample in samples() {
            let stored = lzokay_native::compress(&sample).unwrap();
            assert!(decode(&stored, sample.len() - 1).is_err());
            assert!(decode(&[&stored[..], &[0]].concat(), sample.len()).is_err());
            for len in (0..stored.len()).step_by(1 + stored.len() / 100) {
                assert!(decode(&stored[..len], sample.len()).is_err());
            }
        }
    }
}
