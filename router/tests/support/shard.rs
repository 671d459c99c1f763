//! A shard of a gateway, played by a test: both streams of a link, and what came down them.

use std::time::Duration;

use bytes::Bytes;
use penstock_proto::{
    link::{
        Append, Attach, Attached, ControlDown, ControlUp, DataDown, DataUp, Deliver, EndWills, EndedWill,
        FilterChange, Hello, Interest, OpenLane, Owner, Settle, Taken, WillEnd, control_down, control_up,
        data_down, data_up, link_client::LinkClient,
    },
    record::{Record, RecordBatch},
};
use prost::Message;
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Streaming};

const LIMIT: Duration = Duration::from_secs(10);

pub struct Shard {
    control: mpsc::Sender<ControlUp>,
    data: mpsc::Sender<DataUp>,
    control_down: Streaming<ControlDown>,
    data_down: Streaming<DataDown>,
    settles: Vec<Settle>,
}

pub struct Numbered {
    pub first: u64,
    pub epoch: u64,
    pub topics: Vec<&'static str>,
}

impl Numbered {
    pub fn new(first: u64, topics: &[&'static str]) -> Self {
        Self { first, epoch: 1, topics: topics.to_vec() }
    }

    fn records(&self, client: &'static str) -> Bytes {
        let record = |topic: &&'static str| Record {
            client: Bytes::from_static(client.as_bytes()),
            epoch: self.epoch,
            topic: Bytes::from_static(topic.as_bytes()),
            qos: 1,
            ..Record::default()
        };
        RecordBatch { records: self.topics.iter().map(record).collect() }.encode_to_vec().into()
    }
}

fn request<T>(message: T, gateway: u64, link: u64) -> Request<T> {
    let mut request = Request::new(message);
    for (key, value) in [("penstock-gateway", gateway), ("penstock-link", link), ("penstock-shard", 0)] {
        request.metadata_mut().insert(key, value.to_string().parse().unwrap());
    }
    request
}

impl Shard {
    pub async fn link(address: std::net::SocketAddr, gateway: u64, link: u64) -> Self {
        let mut client = LinkClient::connect(format!("http://{address}")).await.unwrap();
        let (control, up) = mpsc::channel(100);
        let hello = Hello { gateway, shard: 0, producer: gateway * 10, node_id: format!("g{gateway}") };
        control.send(ControlUp { kind: Some(control_up::Kind::Hello(hello)) }).await.unwrap();
        let stream = client.control(request(ReceiverStream::new(up), gateway, link)).await.unwrap();
        let mut control_down = stream.into_inner();
        let welcome = timeout(LIMIT, control_down.message()).await.unwrap().unwrap().unwrap();
        assert!(matches!(welcome.kind, Some(control_down::Kind::Welcome(_))));
        let (data, up) = mpsc::channel(100);
        let data_down =
            client.data(request(ReceiverStream::new(up), gateway, link)).await.unwrap().into_inner();
        Self { control, data, control_down, data_down, settles: Vec::new() }
    }

    pub async fn tell(&self, kind: control_up::Kind) {
        self.control.send(ControlUp { kind: Some(kind) }).await.unwrap();
    }

    pub async fn send(&self, kind: data_up::Kind) {
        self.data.send(DataUp { kind: Some(kind) }).await.unwrap();
    }

    /// The next control message that is no heartbeat.
    pub async fn told(&mut self) -> control_down::Kind {
        loop {
            let message = timeout(LIMIT, self.control_down.message()).await.expect("no control message");
            match message.unwrap().unwrap().kind.unwrap() {
                control_down::Kind::Heartbeat(_) => {}
                kind => return kind,
            }
        }
    }

    pub async fn sent(&mut self) -> data_down::Kind {
        let message = timeout(LIMIT, self.data_down.message()).await.expect("no data message");
        message.unwrap().unwrap().kind.unwrap()
    }

    pub async fn open(&mut self, lane: u32, owners: &[(&'static str, u64)]) {
        self.ask_open(lane, owners).await;
        loop {
            if let control_down::Kind::LaneOpened(opened) = self.told().await {
                assert_eq!(opened.lane, lane);
                return;
            }
        }
    }

    /// Attaches an owner with a will, whose topic and payload are given; empty: without one.
    pub async fn attach(
        &mut self,
        lane: u32,
        client: &'static str,
        epoch: u64,
        will: &'static str,
    ) -> Attached {
        self.ask_attach(lane, client, epoch, will).await;
        self.attached(epoch).await
    }

    pub async fn ask_attach(&mut self, lane: u32, client: &'static str, epoch: u64, will: &'static str) {
        let record = Record {
            client: Bytes::from_static(client.as_bytes()),
            epoch,
            topic: Bytes::from_static(will.as_bytes()),
            payload: Bytes::from_static(will.as_bytes()),
            qos: 1,
            last_will: true,
            ..Record::default()
        };
        let (will_epoch, will) =
            if will.is_empty() { (0, Bytes::new()) } else { (epoch, record.encode_to_vec().into()) };
        let client = Bytes::from_static(client.as_bytes());
        let owners = vec![Owner { client, epoch, will_epoch, will, wipe: false }];
        self.tell(control_up::Kind::Attach(Attach { seq: epoch, lane, owners })).await;
    }

    pub async fn attached(&mut self, epoch: u64) -> Attached {
        loop {
            if let control_down::Kind::Attached(attached) = self.told().await {
                assert_eq!(attached.seq, epoch);
                return attached;
            }
        }
    }

    /// Ends a will, and waits until that is confirmed.
    pub async fn end_will(&mut self, lane: u32, client: &'static str, epoch: u64, end: WillEnd) {
        let ended = EndedWill { client: Bytes::from_static(client.as_bytes()), epoch, end: end.into() };
        self.tell(control_up::Kind::EndWills(EndWills { seq: 1, lane, ended: vec![ended] })).await;
        while !matches!(self.told().await, control_down::Kind::WillsEnded(_)) {}
    }

    pub async fn ask_open(&mut self, lane: u32, owners: &[(&'static str, u64)]) {
        let owner = |(client, epoch): &(&'static str, u64)| Owner {
            client: Bytes::from_static(client.as_bytes()),
            epoch: *epoch,
            ..Owner::default()
        };
        let owners = owners.iter().map(owner).collect();
        self.tell(control_up::Kind::OpenLane(OpenLane { lane, tenant: "acme".into(), partition: 0, owners }))
            .await;
    }

    pub async fn append(&self, lane: u32, client: &'static str, batch: &Numbered, resent: bool) {
        let records = batch.records(client);
        let count = batch.topics.len() as u32;
        let append = Append { lane, first: batch.first, count, records, resent, first_received_at: 1 };
        self.send(data_up::Kind::Append(append)).await;
    }

    /// The next settle.
    pub async fn settled(&mut self) -> Settle {
        while self.settles.is_empty() {
            match self.sent().await {
                data_down::Kind::Settles(settles) => self.settles = settles.settles,
                other => panic!("{other:?} instead of settles"),
            }
        }
        self.settles.remove(0)
    }

    pub async fn interest(&mut self, seq: u64, filters: &[&'static str]) {
        let change = |filter: &&'static str| FilterChange {
            tenant: "acme".into(),
            filter: Bytes::from_static(filter.as_bytes()),
            present: true,
        };
        let changes = filters.iter().map(change).collect();
        self.tell(control_up::Kind::Interest(Interest { seq, snapshot_end: seq == 1, changes })).await;
        loop {
            if let control_down::Kind::InterestConfirmed(confirmed) = self.told().await {
                assert_eq!(confirmed.seq, seq);
                return;
            }
        }
    }

    pub async fn delivered(&mut self) -> Deliver {
        loop {
            match self.sent().await {
                data_down::Kind::Deliver(deliver) => return deliver,
                data_down::Kind::Settles(settles) => self.settles.extend(settles.settles),
                other => panic!("{other:?} instead of a delivery"),
            }
        }
    }

    pub async fn take(&self, deliver: &Deliver) {
        self.send(data_up::Kind::Taken(Taken { delivery: deliver.delivery })).await;
    }
}

pub fn topics(records: &[u8]) -> Vec<String> {
    let batch = RecordBatch::decode(records).unwrap();
    batch.records.iter().map(|record| String::from_utf8(record.topic.to_vec()).unwrap()).collect()
}
