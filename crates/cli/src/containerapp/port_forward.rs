//! `containerapp port-forward`: ports of a replica on this machine, without the ingress.

use std::{net::IpAddr, sync::Arc};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};

use super::AppRef;
use crate::{client::encode, failure::Failure, session::Session, text};

/// Connections at once; further ones wait.
const OPEN_MAX: usize = 64;

#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Example: cove containerapp port-forward -n web -g MyRG 5000:8080")]
pub(crate) struct PortForwardArgs {
    #[command(flatten)]
    app: AppRef,
    /// Replica [default: any that is ready].
    #[arg(long)]
    replica: Option<String>,
    /// Address to listen on.
    #[arg(long, default_value = "127.0.0.1")]
    address: IpAddr,
    /// LOCAL:REMOTE, or one number for both; LOCAL 0 takes any free port.
    #[arg(required = true, value_name = "PORTS", value_parser = ports)]
    ports: Vec<(u16, u16)>,
}

fn ports(text: &str) -> Result<(u16, u16), String> {
    let (local, remote) = text.split_once(':').unwrap_or((text, text));
    let number = |text: &str| text.parse::<u16>().map_err(|_| format!("`{text}` is not a port; write 5000:8080"));
    match (number(local)?, number(remote)?) {
        (_, 0) => Err("port 0 of a replica is no port".to_owned()),
        ports => Ok(ports),
    }
}

pub(crate) async fn run(session: &Session, args: PortForwardArgs) -> Result<(), Failure> {
    let app = args.app.path(session);
    let replica = args.replica.as_deref().map(|replica| format!("&replica={}", encode(replica))).unwrap_or_default();
    let places = Arc::new(Semaphore::new(OPEN_MAX));
    let mut listening = tokio::task::JoinSet::new();
    for (local, remote) in args.ports {
        let listener = TcpListener::bind((args.address, local)).await.map_err(|error| {
            Failure::new(format!("failed to listen on {}:{local}: {error}", args.address))
                .hint("choose another LOCAL port")
        })?;
        text::note(&format!("{} -> port {remote} of `{}`; end with Ctrl+C", listener.local_addr()?, args.app.name));
        let path = format!("/cove/v1/port-forward?app={}&port={remote}{replica}", encode(&app));
        let (client, places) = (session.client.clone(), Arc::clone(&places));
        listening.spawn(async move {
            loop {
                let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
                let Ok((mut stream, _)) = listener.accept().await else { return };
                let (client, path) = (client.clone(), path.clone());
                tokio::spawn(async move {
                    let _place = place;
                    if let Err(failure) = carry(&client, &path, &mut stream).await {
                        text::err(&format!("error: {}", failure.text));
                    }
                });
            }
        });
    }
    tokio::select! {
        done = tokio::signal::ctrl_c() => Ok(done?),
        _ = listening.join_next() => Err(Failure::new("the port could not be listened on any more")),
    }
}

async fn carry(client: &crate::client::Client, path: &str, stream: &mut TcpStream) -> Result<(), Failure> {
    let mut port = client.port(path).await?;
    // either side may break off; there is nobody to tell
    let _ended = tokio::io::copy_bidirectional(stream, &mut port).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::ports;

    #[test]
    fn ports_are_pairs_or_one_number() {
        assert_eq!((ports("5000:80"), ports("8080"), ports("0:80")), (Ok((5000, 80)), Ok((8080, 8080)), Ok((0, 80))));
        for wrong in ["", "x", "1:", "70000", "5:0"] {
            assert!(ports(wrong).is_err(), "{wrong}");
        }
    }
}
