//! xz, with a ceiling on what a stream may have us allocate.

use liblzma::stream::{Action, Status, Stream};

use super::Reason;

/// What a decoder takes beside its dictionary: liblzma counts about 70 KiB, plus one filter.
const OVERHEAD: u64 = 1 << 20;
/// No mksquashfs uses a dictionary beyond the block size, 1 MiB at most.
const MAX_DICTIONARY: u32 = 8 << 20;

/// Decodes `stored` into `out` and says how many bytes that made. Streams with a dictionary of
/// more than `dictionary` bytes (by which the kernel sizes its own) are refused.
pub(super) fn decode(stored: &[u8], out: &mut [u8], dictionary: u32) -> Result<usize, Reason> {
    let reason = |error| Reason::Owned(format!("xz: {error}"));
    let memory = u64::from(dictionary.min(MAX_DICTIONARY)) + OVERHEAD;
    let mut stream = Stream::new_stream_decoder(memory, 0).map_err(reason)?;
    let mut read = 0;
    let mut written = 0;
    loop {
        let input = stored.get(read..).unwrap_or_default();
        let output = out.get_mut(written..).unwrap_or_default();
        let status = stream.process(input, output, Action::Finish).map_err(reason)?;
        let progress = (stream.total_in() as usize, stream.total_out() as usize);
        if matches!(status, Status::StreamEnd) {
            return Ok(progress.1);
        }
        if progress == (read, written) {
            return Err("xz: the stream is cut short, or decodes to more than a block".into());
        }
        (read, written) = progress;
    }
}
