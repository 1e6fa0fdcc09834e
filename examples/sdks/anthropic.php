<?php
// Repeats the POST after a cut with the same key: the same turn is streamed from its start, and paid for once.
// composer require anthropic-ai/sdk symfony/http-client

require 'vendor/autoload.php';

use Anthropic\{Client, RequestOptions};
use Anthropic\Core\Exceptions\APIConnectionException;
use Symfony\Component\HttpClient\{HttpClient, Psr18Client};

$streaming = new Psr18Client(HttpClient::create(['timeout' => 60]));
$client = new Client(
    apiKey: 'my-secret-key',
    baseUrl: 'http://localhost:8000',
    requestOptions: RequestOptions::with(streamingTransporter: $streaming),
);
$question = ['role' => 'user', 'content' => 'Name a river.'];
$once = ['extraHeaders' => ['Idempotency-Key' => bin2hex(random_bytes(16))]];
for ($tries = 1, $isComplete = false; !$isComplete; $tries++) {
    $text = '';
    try {
        $events = $client->messages->createStream(
            model: 'claude-sonnet-5-5', maxTokens: 1000, messages: [$question], requestOptions: $once,
        );
        foreach ($events as $event) {
            if ($event->type === 'content_block_delta') $text .= $event->delta->text ?? '';
            $isComplete = $event->type === 'message_stop';
        }
    } catch (RuntimeException|APIConnectionException $cut) { // once more, from the beginning
        if ($tries === 5) throw $cut;
    }
}
echo $text;
