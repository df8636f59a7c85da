package usernet

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// echoEnv makes the test binary an echo server that says its port, until its input ends.
const echoEnv = "USERNET_TEST_ECHO"

func serveEcho() {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		os.Exit(1)
	}
	fmt.Println(l.Addr().(*net.TCPAddr).Port)
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	for {
		c, err := l.Accept()
		if err != nil {
			os.Exit(1)
		}
		go func() { _, _ = io.CopyBuffer(c, onlyReader{c}, make([]byte, 4096)) }()
	}
}

// echoProcess is an echo server in a process of its own.
func echoProcess(b *testing.B) uint16 {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), echoEnv+"=1")
	in, err := cmd.StdinPipe()
	require.NoError(b, err)
	out, err := cmd.StdoutPipe()
	require.NoError(b, err)
	require.NoError(b, cmd.Start())
	b.Cleanup(func() { in.Close(); _ = cmd.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(b, err)
	port, err := strconv.ParseUint(strings.TrimSpace(line), 10, 16)
	require.NoError(b, err)
	return uint16(port)
}

// usage is what the process has had of the host.
func usage(b *testing.B) (u unix.Rusage) {
	require.NoError(b, unix.Getrusage(unix.RUSAGE_SELF, &u))
	return u
}

// BenchmarkPingPong is round trips of 64 bytes between the stack that plays the guest and
// a program of the host's in a process of its own. The guest goes on at once, or after as
// long as it takes a guest in a machine; a switch of that is its own sleep's.
func BenchmarkPingPong(b *testing.B) {
	for _, think := range []time.Duration{0, 100 * time.Microsecond} {
		b.Run(fmt.Sprint("think ", think), func(b *testing.B) {
			n := newNetwork(b, Options{HostLoopback: true})
			g := startGuest(b, n, allOffloads)
			c := g.mustDial(via(gateway4, echoProcess(b)))
			defer c.Close()
			buf := make([]byte, 64)
			pause := unix.NsecToTimespec(int64(think))
			b.ReportAllocs()
			before := usage(b)
			for b.Loop() {
				_, err := c.Write(buf)
				require.NoError(b, err)
				_, err = io.ReadFull(c, buf)
				require.NoError(b, err)
				if think > 0 {
					_ = unix.Nanosleep(&pause, nil)
				}
			}
			after := usage(b)
			cpu := after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()
			b.ReportMetric(float64(cpu)/float64(b.N), "cpu-ns/op")
			b.ReportMetric(float64(after.Nvcsw-before.Nvcsw)/float64(b.N), "switches/op")
		})
	}
}
