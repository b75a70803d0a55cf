//! Folders of executions of jobs: one that all replicas of an execution work in, one for what it leaves behind.
//!
//! They stand in the data directory, outside the replicas' own folders, so they survive a replica, a retry and the server.
//! Whoever knows the history of executions removes them.
//!
//! **Invariant:** `<root>/<job>-<digest of its id>/<execution>/work` and `/artifacts`, and nothing else; names of users make no
//! path.
//! **Invariant:** nothing here follows a link below the root.

use std::{
    fs, io,
    os::{fd::AsRawFd as _, unix::fs::PermissionsExt as _},
};

use camino::{Utf8Path, Utf8PathBuf};
use cove_model::{ResourceId, RevisionKey};
use nix::sys::stat::fstat;
use sha2::{Digest as _, Sha256};

use crate::{shares::OpenShare, tree};

/// Bytes of a job's digest in its folder's name.
const DIGEST_BYTES: usize = 16;

/// Users of containers are many: each may write.
const MODE: u32 = 0o777;

/// Which of an execution's folders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExecutionPart {
    /// Shared by its replicas.
    Work,
    /// What it leaves behind.
    Artifacts,
}

impl ExecutionPart {
    /// Its folder's name.
    #[must_use]
    pub fn folder(self) -> &'static str {
        match self {
            Self::Work => "work",
            Self::Artifacts => "artifacts",
        }
    }
}

/// Where the folders are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecutionDirs {
    root: Utf8PathBuf,
}

impl ExecutionDirs {
    /// Below a data directory; nothing is made yet.
    #[must_use]
    pub fn new(data_dir: &Utf8Path) -> Self {
        Self { root: data_dir.join("executions") }
    }

    /// The folder that holds one folder per job.
    #[must_use]
    pub fn root(&self) -> &Utf8Path {
        &self.root
    }

    /// Name of a job's folder below the root, which holds one folder per execution.
    #[must_use]
    pub fn job_folder(job: &ResourceId) -> String {
        let digest = Sha256::digest(job.key().as_bytes());
        let hex: String = digest[..DIGEST_BYTES].iter().map(|byte| format!("{byte:02x}")).collect();
        let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
        let name: String = job.name().chars().take(60).map(plain).collect();
        format!("{name}-{hex}")
    }

    /// A folder of an execution, which need not be there.
    #[must_use]
    pub fn path(&self, execution: &RevisionKey, part: ExecutionPart) -> Utf8PathBuf {
        self.root.join(Self::relative(execution, part))
    }

    fn relative(execution: &RevisionKey, part: ExecutionPart) -> Utf8PathBuf {
        Utf8PathBuf::from(Self::job_folder(&execution.app)).join(execution.name.as_str()).join(part.folder())
    }

    /// A copy of the mount of a folder, made where it is missing.
    pub(crate) fn open(&self, execution: &RevisionKey, part: ExecutionPart) -> io::Result<OpenShare> {
        fs::create_dir_all(&self.root)?;
        let (dir, is_new) = tree::make_beneath(&self.root, &Self::relative(execution, part))?;
        // a server that was killed before this left the kernel's default behind
        if is_new || fstat(&dir)?.st_mode & 0o7777 == 0o755 {
            fs::set_permissions(format!("/proc/self/fd/{}", dir.as_raw_fd()), fs::Permissions::from_mode(MODE))?;
        }
        Ok(OpenShare { tree: tree::clone_of(&dir)?, is_read_only: false, ignored: Vec::new() })
    }
}

#[cfg(test)]
mod tests {
    use cove_model::RevisionName;

    use super::*;

    fn key(group: &str, execution: &str) -> RevisionKey {
        let app = ResourceId::resource("s1", group, "Microsoft.App/jobs", "Train").unwrap();
        RevisionKey { app, name: RevisionName::new(execution).unwrap() }
    }

    #[test]
    fn a_folder_is_one_jobs_and_one_executions() {
        let folder = |group: &str| ExecutionDirs::job_folder(&key(group, "train-a").app);
        assert_eq!(folder("MyRG"), folder("myrg"));
        assert_ne!(folder("MyRG"), folder("other"));
        assert!(folder("MyRG").starts_with("train-") && folder("(é..)").is_ascii());
    }

    #[test]
    fn folders_are_made_once_for_all_users() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = ExecutionDirs::new(Utf8Path::from_path(dir.path()).unwrap());
        let (one, part) = (key("rg", "train-a"), ExecutionPart::Work);
        dirs.open(&one, part).unwrap();
        let path = dirs.path(&one, part);
        fs::write(path.join("kept"), "x").unwrap();
        dirs.open(&one, part).unwrap();
        assert_eq!(fs::read_to_string(path.join("kept")).unwrap(), "x");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, MODE);
        assert!(!dirs.path(&one, ExecutionPart::Artifacts).exists());
        // a link in its place is not followed
        std::os::unix::fs::symlink("/tmp", path.parent().unwrap().join("artifacts")).unwrap();
        assert!(dirs.open(&one, ExecutionPart::Artifacts).is_err());
    }
}
