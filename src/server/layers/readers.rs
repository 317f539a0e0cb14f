//! Layers that somebody reads who is not their mount: they are put aside if nothing needs them any more, but not removed
//! meanwhile.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::Serials;
use crate::types::LayerSerial;

/// How many read each layer.
#[derive(Clone, Debug, Default)]
pub(super) struct Readers(Arc<Mutex<BTreeMap<LayerSerial, usize>>>);

impl Readers {
    /// One more who reads `layers`.
    pub(super) fn read(&self, layers: impl IntoIterator<Item = LayerSerial>) -> Reading {
        let layers: Serials = layers.into_iter().collect();
        let mut counts = self.0.lock();
        layers.iter().for_each(|layer| *counts.entry(*layer).or_default() += 1);
        drop(counts);
        Reading { readers: self.clone(), layers }
    }

    pub(super) fn has(&self, layer: LayerSerial) -> bool {
        self.0.lock().contains_key(&layer)
    }
}

/// Keeps layers from being removed.
#[derive(Debug)]
pub(in super::super) struct Reading {
    readers: Readers,
    layers: Serials,
}

impl Drop for Reading {
    fn drop(&mut self) {
        let mut counts = self.readers.0.lock();
        for layer in &self.layers {
            match counts.get_mut(layer) {
                Some(count) if *count > 1 => *count -= 1,
                _ => drop(counts.remove(layer)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_is_read_until_the_last_who_does_has_ended() {
        let readers = Readers::default();
        let [one, two, three] = [1, 2, 3].map(LayerSerial);
        let first = readers.read([one, two]);
        let second = readers.read([two]);
        assert!(readers.has(one) && readers.has(two) && !readers.has(three));
        drop(first);
        assert!(!readers.has(one) && readers.has(two));
        drop(second);
        assert!(!readers.has(two));
    }
}
