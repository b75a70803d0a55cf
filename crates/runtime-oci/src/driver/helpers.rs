//! Helpers that wait for a replica, and the zygote they are forked from.
//!
//! **Invariant:** at most `helpers_spare` wait, however many were taken at once; a failed zygote is started anew by the
//! next need, not in a loop.

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsRawFd, OwnedFd},
    process::Stdio,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Notify, time::timeout};
use tokio_util::task::TaskTracker;

use super::{Inner, OciConfig, OpenError, conn::Conn, lock};
use crate::{
    protocol::{FromShim, ToZygote, pair},
    shim::ZYGOTE_COMMAND,
};

/// Longest wait for a zygote or a helper; a machine under load takes seconds for a cgroup on v1.
const READY_LIMIT: Duration = Duration::from_secs(30);

/// A helper that can be assigned.
#[derive(Debug)]
pub(super) struct Helper {
    pub(super) conn: Conn,
    /// Path of its cgroup.
    pub(super) cgroup: String,
}

/// All of them.
#[derive(Debug)]
pub(super) struct Helpers {
    program: Vec<String>,
    cgroup_dir: String,
    cgroup_parent: String,
    nonce: u32,
    next: AtomicU32,
    zygote: tokio::sync::Mutex<Option<Conn>>,
    spare: Mutex<VecDeque<Helper>>,
    is_filling: AtomicBool,
    filled: Notify,
    /// Helpers that are being made. Nothing cuts that off: a process that was ordered joins its group late or soon.
    making: TaskTracker,
}

impl Helpers {
    pub(super) async fn open(config: &OciConfig) -> Result<Self, OpenError> {
        let helpers = Self {
            program: config.shim_program.clone(),
            cgroup_dir: config.dir.join("cgroup").into_string(),
            cgroup_parent: parent(config),
            nonce: rand::random(),
            next: AtomicU32::new(0),
            zygote: tokio::sync::Mutex::new(None),
            spare: Mutex::default(),
            is_filling: AtomicBool::new(false),
            filled: Notify::new(),
            making: TaskTracker::new(),
        };
        let zygote = helpers.start_zygote().await.map_err(|error| OpenError::Helper {
            program: config.shim_program.join(" "),
            message: error.to_string(),
        })?;
        *helpers.zygote.lock().await = Some(zygote);
        Ok(helpers)
    }

    async fn start_zygote(&self) -> io::Result<Conn> {
        let (ours, theirs) = pair()?;
        let (program, arguments) =
            self.program.split_first().ok_or_else(|| io::Error::other("no helper program is configured"))?;
        let mut child = tokio::process::Command::new(program)
            .args(arguments)
            .arg(ZYGOTE_COMMAND)
            .arg(&self.cgroup_dir)
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .spawn()?;
        let conn = nonblocking(ours)?;
        match wait_blank(&conn).await {
            Ok(()) => {}
            Err(error) => {
                // It ends by itself when its socket closes; do not leave it unreaped.
                let _ = child.start_kill();
                return Err(error);
            }
        }
        // Reaped by tokio whenever it ends.
        drop(child);
        Ok(conn)
    }

    /// A helper: one that waits, else a new one.
    pub(super) async fn take(self: &Arc<Self>) -> io::Result<Helper> {
        if let Some(helper) = self.take_spare() {
            return Ok(helper);
        }
        self.make().await
    }

    fn take_spare(&self) -> Option<Helper> {
        lock(&self.spare).pop_front()
    }

    /// Waits until this many wait.
    pub(super) async fn full(&self, count: usize) {
        loop {
            let filled = self.filled.notified();
            if lock(&self.spare).len() >= count {
                return;
            }
            filled.await;
        }
    }

    async fn make(self: &Arc<Self>) -> io::Result<Helper> {
        let helpers = Arc::clone(self);
        self.making.spawn(async move { helpers.make_one().await }).await.map_err(io::Error::other)?
    }

    async fn make_one(&self) -> io::Result<Helper> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let cgroup = format!("{}/{}{number}", self.cgroup_parent, self.prefix());
        let (ours, theirs) = pair()?;
        self.fork(&cgroup, &theirs).await?;
        drop(theirs);
        let conn = nonblocking(ours)?;
        wait_blank(&conn).await?;
        Ok(Helper { conn, cgroup })
    }

    async fn fork(&self, cgroup: &str, socket: &OwnedFd) -> io::Result<()> {
        let mut zygote = self.zygote.lock().await;
        let order = ToZygote::Fork { cgroup: cgroup.to_owned() };
        if let Some(running) = &*zygote
            && running.send(&order, &[socket.as_raw_fd()]).is_ok()
        {
            return Ok(());
        }
        tracing::warn!("the zygote of the helpers is gone; starting another");
        let started = self.start_zygote().await?;
        started.send(&order, &[socket.as_raw_fd()])?;
        *zygote = Some(started);
        Ok(())
    }

    /// What the names of this run's cgroups begin with.
    pub(super) fn prefix(&self) -> String {
        format!("h{:08x}-", self.nonce)
    }

    /// Lets the zygote and all helpers that wait end; those that are being made come into being first, within a limit.
    pub(super) async fn close(&self) {
        self.making.close();
        if timeout(READY_LIMIT, self.making.wait()).await.is_err() {
            tracing::warn!("a helper is still being made; its cgroup may stay");
        }
        *self.zygote.lock().await = None;
        lock(&self.spare).clear();
    }
}

/// Path of the cgroup that holds all of a driver's.
pub(super) fn parent(config: &OciConfig) -> String {
    format!("cove-{}", config.name)
}

fn nonblocking(fd: OwnedFd) -> io::Result<Conn> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Conn::new(fd)
}

async fn wait_blank(conn: &Conn) -> io::Result<()> {
    match timeout(READY_LIMIT, conn.receive::<FromShim>()).await {
        Ok(Ok(Some(FromShim::Blank))) => Ok(()),
        Ok(Ok(Some(FromShim::Broken { message }))) => Err(io::Error::other(message)),
        Ok(Ok(_)) => Err(io::Error::other("it ended at once; see its error output")),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(io::Error::other(format!("it was not ready within {} s", READY_LIMIT.as_secs()))),
    }
}

/// Brings the number of waiting helpers up in the background.
pub(super) fn refill(inner: &Arc<Inner>) {
    if inner.helpers.is_filling.swap(true, Ordering::AcqRel) {
        return;
    }
    let inner = Arc::clone(inner);
    let stop = inner.stop.clone();
    tokio::spawn(stop.run_until_cancelled_owned(async move {
        while lock(&inner.helpers.spare).len() < inner.config.helpers_spare {
            match inner.helpers.make().await {
                Ok(helper) => {
                    lock(&inner.helpers.spare).push_back(helper);
                    inner.helpers.filled.notify_waiters();
                }
                Err(error) => {
                    tracing::warn!(%error, "failed to make a helper ahead");
                    break;
                }
            }
        }
        inner.helpers.is_filling.store(false, Ordering::Release);
    }));
}
