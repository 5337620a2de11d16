//! A stand-in for the agent of a SPIFFE Workload API: real gRPC over a Unix socket, with answers that the test gives.

use std::{convert::Infallible, os::unix::fs::PermissionsExt as _, path::PathBuf, pin::Pin, sync::Arc, thread};

use futures_util::{Stream, stream};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use outrigger_identity::{
    workload_api::Endpoint,
    workload_proto::{
        X509svid, X509svidRequest, X509svidResponse,
        spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer},
    },
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tokio::{
    net::UnixListener,
    sync::{oneshot, watch},
};
use tonic::{Request, Response, Status};

use super::{Pod, pki::Issued};

type Answer = Result<X509svidResponse, Status>;

/// A running agent; it goes when it is dropped, and its connections with it.
pub struct Agent {
    path: PathBuf,
    answer: watch::Sender<Answer>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

/// An identity as an agent gives it, with these roots (PEM).
pub fn svid(id: &str, issued: &Issued, roots: &str) -> X509svid {
    let all =
        |pem: &str| CertificateDer::pem_slice_iter(pem.as_bytes()).flat_map(|der| der.unwrap().to_vec()).collect();
    X509svid {
        spiffe_id: id.to_owned(),
        x509_svid: all(&issued.chain),
        x509_svid_key: PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).unwrap().secret_der().to_vec(),
        bundle: all(roots),
        hint: String::new(),
    }
}

/// What an agent says to a workload that it does not know.
pub fn nothing() -> Answer {
    Err(Status::permission_denied("no identity issued"))
}

impl Agent {
    /// The agent of a pod; it may be started again where one was dropped.
    pub fn start(pod: &Pod, answer: Answer) -> Self {
        let path = pod.folder("agent").join("api.sock");
        let _ = std::fs::remove_file(&path);
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).unwrap();
        let (answer, answers) = watch::channel(answer);
        let (stop, stopped) = oneshot::channel();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                tokio::select! {
                    () = serve(UnixListener::from_std(listener).unwrap(), answers) => {}
                    _ = stopped => {}
                }
            });
        });
        Self { path, answer, stop: Some(stop), thread: Some(thread) }
    }

    /// Where it is.
    pub fn endpoint(&self) -> String {
        Endpoint::Unix(self.path.clone()).to_string()
    }

    /// Says this from now on, also over the streams that are open.
    pub fn say(&self, answer: Answer) {
        drop(self.answer.send_replace(answer));
    }

    /// Gives these identities from now on.
    pub fn give(&self, svids: Vec<X509svid>) {
        self.say(Ok(X509svidResponse { svids, ..X509svidResponse::default() }));
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.stop.take());
        drop(self.thread.take().map(thread::JoinHandle::join));
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn serve(listener: UnixListener, answers: watch::Receiver<Answer>) {
    let service = SpiffeWorkloadApiServer::new(Api(answers));
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let service = service.clone();
        tokio::spawn(async move {
            let service = hyper::service::service_fn(move |request| {
                let mut service = service.clone();
                async move {
                    match tower::Service::call(&mut service, request).await {
                        Ok(answer) => Ok::<_, Infallible>(answer),
                        Err(never) => match never {},
                    }
                }
            });
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            let _ = builder.clone().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

struct Api(watch::Receiver<Answer>);

#[tonic::async_trait]
impl SpiffeWorkloadApi for Api {
    type FetchX509SVIDStream = Pin<Box<dyn Stream<Item = Answer> + Send>>;

    async fn fetch_x509svid(
        &self,
        request: Request<X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        // As every agent must (SPIFFE Workload API, section 6.1).
        if request.metadata().get("workload.spiffe.io").is_none_or(|value| value != "true") {
            return Err(Status::invalid_argument("security header missing from request"));
        }
        let answers = Arc::new(tokio::sync::Mutex::new((self.0.clone(), true)));
        // A refusal ends the stream.
        let next = move |over: bool| {
            let answers = Arc::clone(&answers);
            async move {
                if over {
                    return None;
                }
                let mut answers = answers.lock().await;
                if !std::mem::replace(&mut answers.1, false) {
                    answers.0.changed().await.ok()?;
                }
                let answer = answers.0.borrow_and_update().clone();
                let over = answer.is_err();
                Some((answer, over))
            }
        };
        Ok(Response::new(Box::pin(stream::unfold(false, next))))
    }
}
