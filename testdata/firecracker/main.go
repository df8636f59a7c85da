// Dial is a client of the Unix socket before a guest's sockets, as Firecracker's own Go
// library has it: dial PATH PORT writes its standard input to a port of the guest, and as
// many bytes as it has written from there to its standard output.
//
// It is a module of its own: vole needs nothing of that library.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/firecracker-microvm/firecracker-go-sdk/vsock"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	if len(os.Args) != 3 {
		return fmt.Errorf("usage: dial PATH PORT")
	}
	port, err := strconv.ParseUint(os.Args[2], 10, 32)
	if err != nil {
		return err
	}
	in, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	// It tries again until the guest listens.
	c, err := vsock.DialContext(ctx, os.Args[1], uint32(port), vsock.WithRetryTimeout(time.Minute))
	if err != nil {
		return err
	}
	defer c.Close()
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(in)
		sent <- err
	}()
	if _, err := io.CopyN(os.Stdout, c, int64(len(in))); err != nil {
		return err
	}
	return <-sent
}
