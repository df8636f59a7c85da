// Command peer is the guest's side of package stream: a static program for an
// initramfs.
//
//	peer serve COUNT ADDRESS            answer so many clients, and end
//	peer VERB BYTES ADDRESS             one exchange: send, recv, echo, sink, source, turns
//	peer many COUNT BYTES ADDRESS       so many connections at once, an echo on each
//	peer udp COUNT BYTES HOST:PORT      so many datagrams to who echoes them, and how many are lost
//	peer udpserve HOST:PORT             echo datagrams until it is killed
//	peer late COUNT ADDRESS             accept so many clients, and answer them once there is a line on stdin
//	peer junk COUNT INTERFACE/MAC       so many frames of garbage, to that neighbour
//
// ADDRESS is tcp:HOST:PORT or vsock:CID:PORT. What came of it is one line that
// begins with PEER.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vole-vmm/vole/testdata/nested/stream"
)

func main() {
	begin := time.Now()
	if err := run(os.Args[1:]); err != nil {
		fmt.Printf("PEER FAILED %s: %v\n", strings.Join(os.Args[1:], " "), err)
		os.Exit(1)
	}
	fmt.Printf("PEER ok %s in %d ms\n", strings.Join(os.Args[1:], " "), time.Since(begin).Milliseconds())
}

func run(args []string) error {
	if len(args) < 2 {
		return errors.New("usage: peer VERB [NUMBERS] ADDRESS")
	}
	address := args[len(args)-1]
	var numbers []int64
	for _, a := range args[1 : len(args)-1] {
		n, err := strconv.ParseInt(a, 10, 64)
		if err != nil {
			return err
		}
		numbers = append(numbers, n)
	}
	dial := func() (io.ReadWriteCloser, error) { return dial(address) }
	switch verb := args[0]; {
	case verb == "serve" && len(numbers) == 1:
		return serve(address, int(numbers[0]))
	case verb == "late" && len(numbers) == 1:
		return late(address, int(numbers[0]))
	case verb == "udpserve" && len(numbers) == 0:
		c, err := net.ListenPacket("udp", address)
		if err != nil {
			return err
		}
		fmt.Printf("PEER listens on %s\n", address)
		stream.EchoDatagrams(c)
		return nil
	case verb == "many" && len(numbers) == 2:
		_, err := stream.Many(int(numbers[0]), dial, "echo", numbers[1])
		return err
	case verb == "udp" && len(numbers) == 2:
		c, err := net.Dial("udp", address)
		if err != nil {
			return err
		}
		defer c.Close()
		lost, err := stream.Datagrams(c, int(numbers[0]), int(numbers[1]), stream.Patience)
		fmt.Printf("LOST %d of %d\n", lost, numbers[0])
		return err
	case verb == "junk" && len(numbers) == 1:
		refused, err := junk(address, int(numbers[0]))
		fmt.Printf("JUNK %d sent, %d refused\n", numbers[0]-int64(refused), refused)
		return err
	case len(numbers) == 1:
		c, err := dial()
		if err != nil {
			return err
		}
		defer c.Close()
		return stream.Client(c, verb, numbers[0])
	}
	return errors.New("usage: peer VERB [NUMBERS] ADDRESS")
}

func serve(address string, count int) error {
	accept, err := listen(address)
	if err != nil {
		return err
	}
	fmt.Printf("PEER listens on %s\n", address)
	errs := make(chan error, count)
	for range count {
		c, err := accept()
		if err != nil {
			return err
		}
		go func() { errs <- answer(c) }()
	}
	return firstOf(errs, count)
}

// late is serve for clients that nobody answers, nor reads from, for a while.
func late(address string, count int) error {
	accept, err := listen(address)
	if err != nil {
		return err
	}
	fmt.Printf("PEER listens on %s\n", address)
	var conns []io.ReadWriteCloser
	for range count {
		c, err := accept()
		if err != nil {
			return err
		}
		conns = append(conns, c)
	}
	fmt.Printf("PEER has %d clients\n", count)
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		return fmt.Errorf("wait for a line: %w", err)
	}
	errs := make(chan error, count)
	for _, c := range conns {
		go func() { errs <- answer(c) }()
	}
	return firstOf(errs, count)
}

// answer serves one client.
func answer(c io.ReadWriteCloser) error {
	err := stream.Serve(c)
	_, _ = io.Copy(io.Discard, c) // until the client has got everything: the guest may end behind this
	c.Close()
	return err
}

// firstOf waits for count ends and returns the first error.
func firstOf(errs <-chan error, count int) error {
	var first error
	for range count {
		if err := <-errs; err != nil && first == nil {
			first = err
		}
	}
	return first
}

// vsockAddress takes CID:PORT apart.
func vsockAddress(s string) (*unix.SockaddrVM, error) {
	cid, port, _ := strings.Cut(s, ":")
	c, err := strconv.ParseUint(cid, 10, 32)
	if err != nil {
		return nil, err
	}
	p, err := strconv.ParseUint(port, 10, 32)
	return &unix.SockaddrVM{CID: uint32(c), Port: uint32(p)}, err
}

func dial(address string) (io.ReadWriteCloser, error) {
	where, isVsock := strings.CutPrefix(address, "vsock:")
	if !isVsock {
		return net.Dial("tcp", strings.TrimPrefix(address, "tcp:"))
	}
	sa, err := vsockAddress(where)
	if err != nil {
		return nil, err
	}
	for {
		fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("vsock socket: %w", err)
		}
		err = unix.Connect(fd, sa)
		if err == nil {
			return file(fd)
		}
		unix.Close(fd)
		// A signal, as Go's runtime sends them to its own threads, ends the attempt.
		if !errors.Is(err, unix.EINTR) {
			return nil, fmt.Errorf("connect %s: %w", address, err)
		}
	}
}

// file is a socket in the runtime's poller: a thread for each of a thousand would be
// too many.
func file(fd int) (*os.File, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "vsock"), nil
}

func listen(address string) (func() (io.ReadWriteCloser, error), error) {
	where, isVsock := strings.CutPrefix(address, "vsock:")
	if !isVsock {
		l, err := net.Listen("tcp", strings.TrimPrefix(address, "tcp:"))
		if err != nil {
			return nil, err
		}
		return func() (io.ReadWriteCloser, error) { return l.Accept() }, nil
	}
	sa, err := vsockAddress(where)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("vsock socket: %w", err)
	}
	if err := errors.Join(unix.Bind(fd, sa), unix.Listen(fd, 1024)); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("listen on %s: %w", address, err)
	}
	return func() (io.ReadWriteCloser, error) {
		for {
			c, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("accept on %s: %w", address, err)
			}
			return file(c)
		}
	}, nil
}
