// Repeats the POST after a cut with the same key: the same turn is streamed from its start, and paid for once.
// go get github.com/anthropics/anthropic-sdk-go
package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"

	"github.com/anthropics/anthropic-sdk-go"
	"github.com/anthropics/anthropic-sdk-go/option"
)

func main() {
	client := anthropic.NewClient(option.WithBaseURL("http://localhost:8000"), option.WithAPIKey("my-secret-key"))
	once := option.WithHeader("Idempotency-Key", rand.Text()) // crypto/rand
	question := anthropic.MessageNewParams{
		Model:     "claude-sonnet-5-5",
		MaxTokens: 1000,
		Messages:  []anthropic.MessageParam{anthropic.NewUserMessage(anthropic.NewTextBlock("Name a river."))},
	}
	for range 5 {
		text := ""
		stream := client.Messages.NewStreaming(context.Background(), question, once)
		for stream.Next() {
			text += stream.Current().Delta.Text
		}
		var refused *anthropic.Error
		if err := stream.Err(); err == nil || errors.As(err, &refused) {
			fmt.Println(text, err)
			break
		} // cut: once more, from the beginning
	}
}
