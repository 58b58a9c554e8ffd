use std::{
    env,
    path::{Path, PathBuf},
    sync::Arc,
};

use parallax_runtime::{
    DEFAULT_TENANT,
    env::{Env, Network},
};
use parallax_security::{Authority, Error as SecurityError, Files, Identity, Kind, Tls};

use crate::Error;

/// How connections are secured, in both directions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TlsOptions {
    /// Certificates that somebody else provides, PEM. Replaced files are taken up within the hour.
    Files(Files),
    /// Certificates of the authority that `parallax start` keeps in this directory, issued and renewed here.
    Local { data_dir: PathBuf },
    /// No TLS at all: only for a control plane in local mode on this machine.
    Plaintext,
}

impl TlsOptions {
    /// Reads `PARALLAX_TLS_CA`, `_CERT` and `_KEY` (paths); else `PARALLAX_TLS=plaintext`; else the local
    /// authority in `PARALLAX_DATA_DIR`, or in `~/.parallax`.
    ///
    /// # Errors
    /// Some of the three files but not all, an unknown `PARALLAX_TLS`, no home directory.
    pub fn from_env() -> Result<Self, Error> {
        Self::read(|name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from))
    }

    fn read(var: impl Fn(&str) -> Option<PathBuf>) -> Result<Self, Error> {
        match ["PARALLAX_TLS_CA", "PARALLAX_TLS_CERT", "PARALLAX_TLS_KEY"].map(&var) {
            [Some(ca), Some(cert), Some(key)] => return Ok(Self::Files(Files { ca, cert, key })),
            [None, None, None] => {}
            _ => {
                let problem = "must be set all three or not at all".to_owned();
                return Err(Error::Setting { name: "PARALLAX_TLS_CA, _CERT and _KEY", problem });
            }
        }
        if let Some(mode) = var("PARALLAX_TLS") {
            if mode.as_os_str() == "plaintext" {
                return Ok(Self::Plaintext);
            }
            let problem = format!("is {mode:?}; the only value is \"plaintext\"");
            return Err(Error::Setting { name: "PARALLAX_TLS", problem });
        }
        match var("PARALLAX_DATA_DIR").or_else(|| Some(var("HOME")?.join(".parallax"))) {
            Some(data_dir) => Ok(Self::Local { data_dir }),
            None => {
                let problem = "must be set where there is no HOME".to_owned();
                Err(Error::Setting { name: "PARALLAX_DATA_DIR", problem })
            }
        }
    }
}

/// Certificates in use, and how they stay valid.
#[derive(Clone)]
pub(crate) struct Credentials {
    /// None in plaintext.
    pub(crate) tls: Option<Tls>,
    local: Option<Arc<Local>>,
    env: Arc<dyn Env>,
}

struct Local {
    data_dir: PathBuf,
    identity: Identity,
}

impl Local {
    fn files(&self, env: &dyn Env) -> Result<Files, Error> {
        let (dir, now) = (self.data_dir.join("ca"), env.system_time());
        let authority = Authority::open_existing(&dir, now).map_err(|e| match e {
            SecurityError::Missing { .. } => Error::NoAuthority { dir },
            other => other.into(),
        })?;
        let Identity { kind, id, .. } = &self.identity;
        let own = self.data_dir.join("tls").join(format!("{kind}s")).join(id);
        Ok(authority.bundle(&self.identity, &own, now)?)
    }
}

impl Credentials {
    /// How peers are reached.
    pub(crate) fn network(&self) -> &dyn Network {
        &*self.env
    }

    /// Those of `kind` and `id`. Checks that the id can be a name in a certificate, with TLS or without.
    pub(crate) fn open(options: &TlsOptions, kind: Kind, id: &str, env: Arc<dyn Env>) -> Result<Self, Error> {
        let identity = Identity::new(DEFAULT_TENANT, kind, id)?;
        let (files, local) = match options {
            TlsOptions::Plaintext => return Ok(Self { tls: None, local: None, env }),
            TlsOptions::Files(files) => (files.clone(), None),
            TlsOptions::Local { data_dir } => {
                let local = Local { data_dir: absolute(data_dir), identity };
                (local.files(&*env)?, Some(Arc::new(local)))
            }
        };
        let tls = Tls::load(files, env.system_time())?;
        Ok(Self { tls: Some(tls), local, env })
    }

    /// Takes up files that were replaced; local ones are replaced here, long before they expire and whenever
    /// the authority is another. On an error the former certificates stay in use.
    pub(crate) fn refresh(&self) -> Result<(), Error> {
        if let Some(local) = &self.local {
            local.files(&*self.env)?;
        }
        if let Some(tls) = &self.tls {
            tls.reload(self.env.system_time())?;
        }
        Ok(())
    }
}

/// So that an error names a path that can be found.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(vars: &[(&str, &str)]) -> Result<TlsOptions, String> {
        let var = |name: &str| vars.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into());
        TlsOptions::read(var).map_err(|e| e.to_string())
    }

    #[test]
    fn the_environment_is_read_in_order() {
        let (ca, cert, key) =
            (("PARALLAX_TLS_CA", "a"), ("PARALLAX_TLS_CERT", "b"), ("PARALLAX_TLS_KEY", "c"));
        let (plain, home) = (("PARALLAX_TLS", "plaintext"), ("HOME", "/h"));
        let files = Files { ca: "a".into(), cert: "b".into(), key: "c".into() };
        assert_eq!(read(&[ca, cert, key, plain]), Ok(TlsOptions::Files(files)));
        assert_eq!(read(&[plain, home]), Ok(TlsOptions::Plaintext));
        assert_eq!(read(&[home]), Ok(TlsOptions::Local { data_dir: "/h/.parallax".into() }));
        let own = ("PARALLAX_DATA_DIR", "/d");
        assert_eq!(read(&[home, own]), Ok(TlsOptions::Local { data_dir: "/d".into() }));
        assert!(read(&[ca, home]).unwrap_err().contains("all three"));
        assert!(read(&[("PARALLAX_TLS", "off"), home]).unwrap_err().contains("\"off\""));
        assert!(read(&[]).unwrap_err().contains("PARALLAX_DATA_DIR"));
    }
}
