"""The outbound half of FastAPI: named HTTP clients, configured by the environment, injected with `Depends`."""

from fastapi_http_client.auth import APIKeyAuth, BasicAuth, BearerAuth
from fastapi_http_client.circuit_breaker import CircuitBreaker
from fastapi_http_client.client import AsyncHTTPClient
from fastapi_http_client.config import ClientConfig
from fastapi_http_client.context import RequestIdFilter, get_request_id, request_context
from fastapi_http_client.edge.asgi import RequestContextMiddleware, cancel_on_disconnect
from fastapi_http_client.edge.dependency import http_client
from fastapi_http_client.edge.problems import http_client_responses
from fastapi_http_client.edge.registry import HTTPClients
from fastapi_http_client.errors import (
    Attempt,
    AuthenticationError,
    CircuitBreakerOpenError,
    ConfigurationError,
    HTTPClientError,
    HTTPRequestError,
    HTTPResponseError,
    HTTPTimeoutError,
    RateLimitError,
    RetryExhaustedError,
)
from fastapi_http_client.middleware import LoggingMiddleware, Middleware
from fastapi_http_client.models import HTTPRequest, HTTPResponse
from fastapi_http_client.oauth2 import OAuth2ClientCredentials
from fastapi_http_client.policies.circuit_breaker import CircuitState
from fastapi_http_client.rate_limiter import TokenBucketRateLimiter
from fastapi_http_client.retry import RetryMiddleware

__all__ = [
    "APIKeyAuth",
    "AsyncHTTPClient",
    "Attempt",
    "AuthenticationError",
    "BasicAuth",
    "BearerAuth",
    "CircuitBreaker",
    "CircuitBreakerOpenError",
    "CircuitState",
    "ClientConfig",
    "ConfigurationError",
    "HTTPClientError",
    "HTTPClients",
    "HTTPRequest",
    "HTTPRequestError",
    "HTTPResponse",
    "HTTPResponseError",
    "HTTPTimeoutError",
    "LoggingMiddleware",
    "Middleware",
    "OAuth2ClientCredentials",
    "RateLimitError",
    "RequestContextMiddleware",
    "RequestIdFilter",
    "RetryExhaustedError",
    "RetryMiddleware",
    "TokenBucketRateLimiter",
    "cancel_on_disconnect",
    "get_request_id",
    "http_client",
    "http_client_responses",
    "request_context",
]
