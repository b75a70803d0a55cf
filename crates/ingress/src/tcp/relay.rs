//! Passes bytes between a client and its replica, both ways at once.
//!
//! **Invariant:** an end of stream is passed on in its direction only; the other goes on until it ends too.
//! **Invariant:** at most one buffer per direction is held: who is faster waits for who is slower.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use cove_base::Rare;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    time::Instant,
};

/// Bytes copied at once at first, per direction: most connections never have more to say.
const BUFFER_BYTES: usize = 16 << 10;
/// Bytes copied at once in a direction whose first buffer was filled.
const BUFFER_BYTES_MAX: usize = 128 << 10;

/// How a direction ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// The sender had no more to say, or the receiver takes no more.
    Quiet,
    /// The sender is gone without having ended its stream.
    Broken,
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Both said all they had to say.
    Done,
    /// One of them broke it off: the other must not take what it got for all there is.
    Reset,
    /// Nobody said anything for too long.
    Silent,
}

/// When bytes last moved, in milliseconds since the begin.
struct Activity {
    since: Instant,
    last_ms: AtomicU64,
}

impl Activity {
    fn mark(&self) {
        let passed = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_ms.store(passed, Ordering::Relaxed);
    }

    /// Waits until nothing moved for `idle`.
    async fn silence(&self, idle: Duration) {
        loop {
            let until = self.since + Duration::from_millis(self.last_ms.load(Ordering::Relaxed)) + idle;
            if until <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }
}

/// Copies both ways until both ends are done, one is gone, or nobody said anything for `idle`.
pub(super) async fn relay(client: &mut TcpStream, app: &mut TcpStream, idle: Duration) -> Outcome {
    let activity = Activity { since: Instant::now(), last_ms: AtomicU64::new(0) };
    let (client_reader, client_writer) = client.split();
    let (app_reader, app_writer) = app.split();
    let both = async {
        let up = pump(client_reader, app_writer, &activity);
        let down = pump(app_reader, client_writer, &activity);
        tokio::pin!(up, down);
        let last = tokio::select! {
            end = &mut up => if end == End::Quiet { down.await } else { end },
            end = &mut down => if end == End::Quiet { up.await } else { end },
        };
        if last == End::Quiet { Outcome::Done } else { Outcome::Reset }
    };
    let silent = Rare::new(activity.silence(idle));
    tokio::select! {
        biased;
        outcome = both => outcome,
        () = silent => Outcome::Silent,
    }
}

async fn pump(mut reader: ReadHalf<'_>, mut writer: WriteHalf<'_>, activity: &Activity) -> End {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match reader.read(&mut buffer).await {
            Ok(0) => {
                let _gone_already = writer.shutdown().await;
                return End::Quiet;
            }
            Ok(count) => {
                activity.mark();
                if writer.write_all(&buffer[..count]).await.is_err() {
                    // its own direction says whether it is gone
                    return End::Quiet;
                }
                activity.mark();
                if count == buffer.len() && count < BUFFER_BYTES_MAX {
                    buffer.resize(BUFFER_BYTES_MAX, 0);
                }
            }
            Err(_reset) => return End::Broken,
        }
    }
}
