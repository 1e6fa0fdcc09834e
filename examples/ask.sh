#!/bin/sh
# Asks a question with curl, and prints each event of the answer once, as a line of JSON, over any number of lost
# connections and killed gateways:
#
#   sh ask.sh '{"message": "Why is the sky blue?"}' | jq -j 'select(.type == "delta").text'
#
# It needs a gateway at TAILRACE_URL (default: http://127.0.0.1:8000), and its key in TAILRACE_KEY if it has one.
set -eu
[ $# = 1 ] || { echo "usage: sh ask.sh '{\"message\": \"Why is the sky blue?\"}'" >&2 && exit 2; }

url=${TAILRACE_URL:-http://127.0.0.1:8000}
# With the same key, a POST that is repeated starts no second turn.
key=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
state=$(mktemp -d)
trap 'rm -rf "$state"' EXIT
trap 'exit 130' INT

request() {
    # curl reads the key from its input, because other users of the machine see its arguments. A connection that a
    # router has forgotten reports no error: keep-alive probes detect it within 150 s.
    printf 'Authorization: Bearer %s\n' "${TAILRACE_KEY:-none}" |
        curl --silent --show-error --no-buffer --connect-timeout 10 --keepalive-time 15 --header @- "$@"
}

tries=0
: > "$state/turn"
while :; do
    status=$(request "$url/v1/turns" --header 'Content-Type: application/json' --header "Idempotency-Key: $key" \
        --data-raw "$1" --output "$state/turn" --write-out '%{http_code}') || status=lost
    case $status in
    2*) break ;;
    lost | 408 | 429 | 5*) tries=$((tries + 1)) ;;
    *) tries=30 ;; # a refusal is for good
    esac
    [ "$tries" -lt 30 ] || { cat "$state/turn" >&2 && exit 1; }
    sleep 2
done
turn=$(sed -n 's/.*"turn":"\([^"]*\)".*/\1/p' "$state/turn")
echo 0 > "$state/cursor"
: > "$state/headers"

until [ -e "$state/ended" ]; do
    request "$url/v1/turns/$turn/events" --header "Last-Event-ID: $(cat "$state/cursor")" --dump-header "$state/headers" |
        while IFS= read -r line; do
            case $line in
            'data: '*) event=${line#data: } ;;
            'id: '*) # the last line of an event
                printf '%s\n' "$event"
                echo "${line#id: }" > "$state/cursor"
                case $event in '{"type":"done"'* | '{"type":"error"'*) touch "$state/ended" ;; esac
                ;;
            esac
        done
    # A refusal is for good, for example after the turn was deleted, unless its status is 408 or 429.
    status=$(sed -n 's/^HTTP[^ ]* \([0-9]*\).*/\1/p' "$state/headers" | tail -n 1)
    case $status in
    408 | 429) ;;
    4*) echo "ask.sh: the gateway refuses turn $turn with status $status" >&2 && exit 1 ;;
    esac
    [ -e "$state/ended" ] || sleep 1
done
