# Repeats the POST after a cut with the same key: the same turn is streamed from its start, and paid for once.
# gem install anthropic
require "anthropic"
require "securerandom"

client = Anthropic::Client.new(base_url: "http://localhost:8000", api_key: "my-secret-key")
question = {role: "user", content: "Name a river."}
once = {extra_headers: {"Idempotency-Key" => SecureRandom.uuid}}
tries = 0
begin
  stream = client.messages.stream(
    model: "claude-sonnet-5-5", max_tokens: 1000, messages: [question], request_options: once
  )
  puts stream.text.to_a.join
rescue Anthropic::Errors::APIConnectionError
  retry if (tries += 1) < 5 # cut: once more, from the beginning
  raise
end
