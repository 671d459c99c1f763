//! A relay: a gateway that can't reach a router asks another one to pass its link through, one hop. Messages go through
//! untouched, so every mechanism of a link works over it.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures::{Stream, StreamExt};
use penstock_common::registry::MemberKind;
use penstock_proto::link::{ControlDown, ControlUp, DataDown, DataUp, link_client::LinkClient};
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Channel, Endpoint},
};

use crate::homes::Homes;

type Down<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

const CONNECT_WITHIN: Duration = Duration::from_secs(1);
/// HTTP/2 windows of links: the defaults give a third of the throughput.
pub const STREAM_WINDOW: u32 = 4 << 20;
/// See `STREAM_WINDOW`.
pub const CONNECTION_WINDOW: u32 = 16 << 20;
/// Most that a gateway, another router or a microservice puts into one frame: each costs it a system call.
pub const FRAME_BYTES: u32 = 256 << 10;
/// A batch holds at most 1 MiB and one record more.
pub const MESSAGE_MOST: usize = 8 << 20;

async fn client(homes: &Homes, via: u64) -> Result<LinkClient<Channel>, Status> {
    let members = homes.presence.members();
    let member = members.routers.get(&via).ok_or_else(|| Status::unavailable("the router is not there"))?;
    let MemberKind::Router { link, .. } = &member.kind else {
        return Err(Status::unavailable("the router is not there"));
    };
    let endpoint = Endpoint::from_shared(format!("http://{link}"))
        .map_err(|error| Status::unavailable(error.to_string()))?
        .connect_timeout(CONNECT_WITHIN)
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME_BYTES);
    let channel = endpoint.connect().await.map_err(|error| Status::unavailable(error.to_string()))?;
    Ok(LinkClient::new(channel).max_decoding_message_size(MESSAGE_MOST))
}

/// Takes the messages out of a request, so that they can go on in another one with the same metadata.
fn passed_on<T: Send + 'static>(request: Request<Streaming<T>>) -> Request<impl Stream<Item = T> + Send> {
    let (metadata, _, inbound) = request.into_parts();
    // A broken stream ends the relayed one as well.
    let stream = inbound
        .take_while(|message| std::future::ready(message.is_ok()))
        .filter_map(|message| async { message.ok() });
    let mut request = Request::new(stream);
    for key in ["penstock-secret", "penstock-link", "penstock-gateway", "penstock-shard", "penstock-router"] {
        if let Some(value) = metadata.get(key) {
            request.metadata_mut().insert(key, value.clone());
        }
    }
    request
}

/// Passes a control stream through.
pub async fn control(
    homes: &Arc<Homes>,
    via: u64,
    request: Request<Streaming<ControlUp>>,
) -> Result<Response<Down<ControlDown>>, Status> {
    let answer = client(homes, via).await?.control(passed_on(request)).await?;
    Ok(Response::new(Box::pin(answer.into_inner())))
}

/// Passes a data stream through.
pub async fn data(
    homes: &Arc<Homes>,
    via: u64,
    request: Request<Streaming<DataUp>>,
) -> Result<Response<Down<DataDown>>, Status> {
    let answer = client(homes, via).await?.data(passed_on(request)).await?;
    Ok(Response::new(Box::pin(answer.into_inner())))
}
