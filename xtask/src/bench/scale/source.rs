//! Thousands of metrics behind one HTTP server, in a process of its own.

use std::process::Stdio;

use anyhow::Context as _;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, ChildStdin, Command};

/// The sources; ended when dropped.
pub(super) struct Process {
    pub(super) port: u16,
    child: Child,
    /// Its end is the signal to end.
    stdin: ChildStdin,
}

impl Process {
    pub(super) async fn start() -> anyhow::Result<Self> {
        let mut child = Command::new(super::own_program()?)
            .args(["bench", "--cove", "none", "scale", "--serve-sources"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("failed to start the event sources")?;
        let stdin = child.stdin.take().context("the event sources have no input")?;
        let mut output = BufReader::new(child.stdout.take().context("the event sources have no output")?);
        let mut line = String::new();
        output.read_line(&mut line).await?;
        let port = line.trim().parse().with_context(|| format!("the event sources said `{}`", line.trim()))?;
        Ok(Self { port, child, stdin })
    }

    pub(super) async fn close(mut self) -> anyhow::Result<()> {
        drop(self.stdin);
        self.child.wait().await?;
        Ok(())
    }
}

/// Prints the port and answers until standard input ends.
#[expect(clippy::print_stdout, reason = "the port is told to the process that started this one")]
pub(super) async fn serve() -> anyhow::Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    println!("{}", listener.local_addr()?.port());
    let mut input = tokio::io::stdin();
    let mut nothing = [0; 1];
    loop {
        tokio::select! {
            _ended = input.read(&mut nothing) => return Ok(()),
            accepted = listener.accept() => {
                let (stream, _) = accepted?;
                tokio::spawn(async move { answer(stream).await.ok() });
            }
        }
    }
}

/// Answers requests of one connection: every path is a queue, whose length follows from the path.
async fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    let mut buffer = Vec::with_capacity(1024);
    loop {
        let end = loop {
            if let Some(end) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
            if stream.read_buf(&mut buffer).await? == 0 || buffer.len() > 64 << 10 {
                return Ok(());
            }
        };
        let length: u32 = buffer[..end].iter().take(40).map(|byte| u32::from(*byte)).sum::<u32>() % 40;
        buffer.drain(..end);
        let body = format!("{{\"queue\":{{\"length\":{length}}}}}");
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length:";
        stream.write_all(format!("{head} {}\r\n\r\n{body}", body.len()).as_bytes()).await?;
    }
}
