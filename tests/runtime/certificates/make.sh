#!/usr/bin/env bash
# Makes the certificates that the tests of TLS use: an authority, a server and a client of it, and a
# stranger. Good for a hundred years and for nothing but these tests.
set -euo pipefail
cd "$(dirname "$0")"
days=36500
authority() {
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days $days \
    -subj "/CN=$1" -keyout "$1.key" -out "$1.pem"
}
leaf() {
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$1" \
    -keyout "$1.key" -out "$1.csr"
  openssl x509 -req -in "$1.csr" -CA authority.pem -CAkey authority.key -CAcreateserial \
    -days $days -out "$1.pem" -extfile <(echo "subjectAltName=DNS:localhost,IP:127.0.0.1")
  rm "$1.csr"
}
authority authority
leaf server
leaf client
authority stranger
rm -f authority.srl authority.key
