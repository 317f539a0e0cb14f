//! Keys of a profile, read again when they get old.

use std::sync::Arc;

use chrono::Utc;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use object_store::aws::AwsCredential;
use parking_lot::Mutex;

use super::profile::{Keys, Profile, check_ascii};
use super::{Access, Error, Result};

/// Keys are renewed this long before they expire, so that none expires on its way.
const MARGIN: chrono::TimeDelta = chrono::TimeDelta::minutes(2);

/// The keys of a profile.
pub(super) struct FromProfile {
    /// Which profile, of whose files.
    access: Access,
    /// The last reading, which may be under way. All requests share it, so that one helper runs at a
    /// time, and it goes on whoever gives up: the next one wants the same.
    reading: Mutex<Option<Reading>>,
}

/// Reads a profile, on a task of its own.
pub(super) type Reading = Shared<BoxFuture<'static, Result<Current, Arc<Error>>>>;

/// Keys, and when they stop working if that is known.
#[derive(Clone)]
pub(super) struct Current {
    pub(super) credential: Arc<AwsCredential>,
    expires: Option<chrono::DateTime<Utc>>,
}

impl Current {
    fn is_old(&self) -> bool {
        self.expires.is_some_and(|expires| Utc::now() + MARGIN >= expires)
    }
}

impl FromProfile {
    /// Of the profile that `options` mean, which has been read already and gave `keys`.
    pub(super) async fn new(access: &Access, keys: Keys) -> Result<Arc<Self>> {
        let first = futures::future::ready(Ok(check(keys)?)).boxed().shared();
        // From now on it can be looked at without waiting.
        drop(first.clone().await);
        Ok(Arc::new(Self { access: access.clone(), reading: Mutex::new(Some(first)) }))
    }

    /// The keys there are, or those that a reading brings which is under way or begins now.
    pub(super) fn read(self: &Arc<Self>) -> Reading {
        let mut reading = self.reading.lock();
        if let Some(last) = &*reading {
            match last.peek() {
                Some(Ok(current)) if current.is_old() => {}
                // Who was there has its failure; it is repeated for those who come.
                Some(Err(_)) => {}
                Some(Ok(_)) | None => return last.clone(),
            }
        }
        let profile = Arc::clone(self);
        let task = tokio::spawn(async move { profile.read_anew().await.map_err(Arc::new) });
        let new = async move {
            // It is cut off only with the runtime, and this with it.
            let abandoned = |_| Err(Arc::new(Error::ShutDown { object: "the profile".into() }));
            task.await.unwrap_or_else(abandoned)
        };
        let new = new.boxed().shared();
        *reading = Some(new.clone());
        new
    }

    async fn read_anew(&self) -> Result<Current> {
        let profile = Profile::read(&self.access)?;
        match profile.keys(self.access.deadline).await? {
            Some(keys) => check(keys),
            None => Err(Error::ExpiredCredentials { object: "the profile".into() }),
        }
    }

    /// Has `used` read again, unless that has happened.
    pub(super) fn forget(&self, used: &Arc<AwsCredential>) {
        let mut reading = self.reading.lock();
        if let Some(Ok(current)) = reading.as_ref().and_then(Shared::peek)
            && Arc::ptr_eq(&current.credential, used)
        {
            *reading = None;
        }
    }
}

fn check(keys: Keys) -> Result<Current> {
    check_ascii(&keys.credential, "the profile")?;
    Ok(Current { credential: Arc::new(keys.credential), expires: keys.expires })
}
