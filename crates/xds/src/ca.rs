//! The certificate service of Istio: `istio.v1.auth.IstioCertificateService`.
//!
//! One call: a signing request goes in, proved by a bearer token in the `authorization` metadata,
//! and a certificate chain comes out. The messages are few enough to be written by hand.

use std::collections::BTreeMap;

use crate::proto::Value;

/// What stands before the method's name in its path.
pub const SERVICE: &str = "istio.v1.auth.IstioCertificateService";
const CREATE_CERTIFICATE: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";

/// Ask for a certificate.
#[derive(Clone, PartialEq, prost::Message)]
pub struct IstioCertificateRequest {
    /// PEM text of a PKCS#10 signing request.
    #[prost(string, tag = "1")]
    pub csr: String,
    /// Lifetime that is wished for, in seconds; the authority may give less. 0 leaves it to the
    /// authority.
    #[prost(int64, tag = "3")]
    pub validity_duration: i64,
    #[prost(message, optional, tag = "4")]
    pub metadata: Option<Metadata>,
}

/// `google.protobuf.Struct`, in the order of its keys.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Metadata {
    #[prost(btree_map = "string, message", tag = "1")]
    pub fields: BTreeMap<String, Value>,
}

/// The certificate that was issued.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct IstioCertificateResponse {
    /// PEM texts: the leaf first, the root last.
    #[prost(string, repeated, tag = "1")]
    pub cert_chain: Vec<String>,
}

/// The calling side.
pub mod client {
    use tonic::client::{Grpc, GrpcService};
    use tonic::codegen::{Body, Bytes, StdError, http::uri::PathAndQuery};
    use tonic::{GrpcMethod, IntoRequest, Response, Status};

    use super::{CREATE_CERTIFICATE, IstioCertificateRequest, IstioCertificateResponse, SERVICE};

    #[derive(Debug, Clone)]
    pub struct IstioCertificateServiceClient<T> {
        inner: Grpc<T>,
    }

    impl<T> IstioCertificateServiceClient<T>
    where
        T: GrpcService<tonic::body::Body>,
        T::Error: Into<StdError>,
        T::ResponseBody: Body<Data = Bytes> + Send + 'static,
        <T::ResponseBody as Body>::Error: Into<StdError> + Send,
    {
        pub fn new(channel: T) -> Self {
            Self {
                inner: Grpc::new(channel),
            }
        }

        /// Limits the size of an answer, in bytes.
        #[must_use]
        pub fn max_decoding_message_size(mut self, limit: usize) -> Self {
            self.inner = self.inner.max_decoding_message_size(limit);
            self
        }

        pub async fn create_certificate(
            &mut self,
            request: impl IntoRequest<IstioCertificateRequest>,
        ) -> Result<Response<IstioCertificateResponse>, Status> {
            self.inner.ready().await.map_err(|e| {
                Status::unavailable(format!("the channel is not ready: {}", e.into()))
            })?;
            let mut request = request.into_request();
            request
                .extensions_mut()
                .insert(GrpcMethod::new(SERVICE, "CreateCertificate"));
            self.inner
                .unary(
                    request,
                    PathAndQuery::from_static(CREATE_CERTIFICATE),
                    tonic_prost::ProstCodec::default(),
                )
                .await
        }
    }
}

/// The answering side.
pub mod server {
    use std::convert::Infallible;
    use std::sync::Arc;
    use std::task::{Context, Poll};

    use tonic::codegen::{Body, BoxFuture, Service, StdError, http};
    use tonic::server::{Grpc, NamedService, UnaryService};
    use tonic::{Request, Response, Status};

    use super::{CREATE_CERTIFICATE, IstioCertificateRequest, IstioCertificateResponse, SERVICE};

    /// What an authority has to do.
    #[tonic::async_trait]
    pub trait IstioCertificateService: Send + Sync + 'static {
        async fn create_certificate(
            &self,
            request: Request<IstioCertificateRequest>,
        ) -> Result<Response<IstioCertificateResponse>, Status>;
    }

    /// The authority as a service for a gRPC router.
    #[derive(Debug)]
    pub struct IstioCertificateServiceServer<T> {
        inner: Arc<T>,
        max_request: usize,
    }

    impl<T> Clone for IstioCertificateServiceServer<T> {
        fn clone(&self) -> Self {
            Self {
                inner: Arc::clone(&self.inner),
                max_request: self.max_request,
            }
        }
    }

    impl<T: IstioCertificateService> IstioCertificateServiceServer<T> {
        /// `max_request`: the longest request that is read, in bytes.
        pub fn new(authority: Arc<T>, max_request: usize) -> Self {
            Self {
                inner: authority,
                max_request,
            }
        }
    }

    impl<T> NamedService for IstioCertificateServiceServer<T> {
        const NAME: &'static str = SERVICE;
    }

    struct CreateCertificate<T>(Arc<T>);

    impl<T: IstioCertificateService> UnaryService<IstioCertificateRequest> for CreateCertificate<T> {
        type Response = IstioCertificateResponse;
        type Future = BoxFuture<Response<Self::Response>, Status>;

        fn call(&mut self, request: Request<IstioCertificateRequest>) -> Self::Future {
            let authority = Arc::clone(&self.0);
            Box::pin(async move { authority.create_certificate(request).await })
        }
    }

    impl<T, B> Service<http::Request<B>> for IstioCertificateServiceServer<T>
    where
        T: IstioCertificateService,
        B: Body + Send + 'static,
        B::Error: Into<StdError> + Send + 'static,
    {
        type Response = http::Response<tonic::body::Body>;
        type Error = Infallible;
        type Future = BoxFuture<Self::Response, Infallible>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: http::Request<B>) -> Self::Future {
            if request.uri().path() != CREATE_CERTIFICATE {
                let unknown = Status::unimplemented("no such method");
                return Box::pin(async move { Ok(unknown.into_http()) });
            }
            let method = CreateCertificate(Arc::clone(&self.inner));
            let mut grpc = Grpc::new(tonic_prost::ProstCodec::default())
                .max_decoding_message_size(self.max_request);
            Box::pin(async move { Ok(grpc.unary(method, request).await) })
        }
    }
}
