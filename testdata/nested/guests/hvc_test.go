package guests

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/testdata/nested"
)

// consoleModules are the drivers that a guest may need for virtio consoles.
var consoleModules = []string{"virtio_pci", "virtio_mmio", "virtio_console"}

// TestVirtioConsole: the console on hvc0, at which somebody types, and a named port.
func TestVirtioConsole(t *testing.T) {
	netKernels(t, 1, func(t *testing.T, kernel, transport string) {
		path := filepath.Join(t.TempDir(), "agent")
		initrd := moduleInitWith(t, kernel, consoleModules, nil, `
exec </dev/hvc0 >/dev/hvc0 2>&1
echo CONSOLES $(cat /sys/class/tty/console/active)
for i in 1 2 3 4 5 6 7 8 9 10; do port=$(grep -l agent /sys/class/virtio-ports/*/name) && break; sleep 1; done
port=/dev/$(basename $(dirname $port))
head -c 100000 <$port >/tmp/in; sha256sum /tmp/in
cat /tmp/in >$port
read line; echo "HEARD <$line>"
seq 1 300
echo LAST WORDS
`)
		data := make([]byte, 100_000)
		for i := range data {
			data[i] = byte(i * i >> 3)
		}
		back := make(chan error, 1)
		go func() {
			back <- retry(func() error {
				c, err := net.Dial("unix", path) // vole makes the socket
				if err != nil {
					return err
				}
				defer c.Close()
				if err := c.SetDeadline(time.Now().Add(3 * time.Minute)); err != nil {
					return err
				}
				if _, err := c.Write(data); err != nil {
					return err
				}
				got := make([]byte, len(data))
				if _, err := io.ReadFull(c, got); err != nil {
					return err
				}
				if sha256.Sum256(got) != sha256.Sum256(data) {
					return errors.New("what came back differs")
				}
				return nil
			})
		}()
		report := filepath.Join(t.TempDir(), "report.json")
		run, keys := startTyped(t, "run", "-k", asset(t, kernel), "-i", initrd, "-m", "256M", "-a", "quiet", "--boot", "vmlinux",
			"--console-device", "virtio", "--port", "agent="+path, "--transport", transport, "--report", report)
		if run.out.until("CONSOLES hvc0") {
			_, err := io.WriteString(keys, "typed words\n")
			assert.NoError(t, err)
		}
		r := run.wait()
		said := "console: " + r.stdout + "\nstderr: " + r.stderr
		require.Equal(t, 0, r.code, said)
		assert.NoError(t, <-back, said)
		assert.Contains(t, r.stdout, "CONSOLES hvc0", said)
		assert.Contains(t, r.stdout, fmt.Sprintf("%x  /tmp/in", sha256.Sum256(data)), said)
		assert.Contains(t, r.stdout, "HEARD <typed words>", said)
		assert.Contains(t, r.stdout, "\r\n299\r\n300\r\nLAST WORDS", said)
		assert.Empty(t, r.stderr)
		assert.NoFileExists(t, path)

		counted := readReport(t, report).counters("console")
		require.Len(t, counted, 2)
		console, agent := counted[0], counted[1]
		assert.EqualValues(t, len("typed words\n"), console["bytes received"], "%v", console)
		_, hvc, _ := strings.Cut(r.stdout, "CONSOLES hvc0")
		assert.Greater(t, console["bytes sent"], uint64(len(hvc)), "%v", console)
		assert.LessOrEqual(t, console["bytes sent"], uint64(len(r.stdout)), "%v", console)
		assert.EqualValues(t, len(data), agent["bytes received"], "%v", agent)
		assert.EqualValues(t, len(data), agent["bytes sent"], "%v", agent)
		for _, none := range []string{"bytes dropped", "control messages ignored", "control messages unsaid"} {
			assert.Contains(t, console, none)
			assert.Zero(t, console[none]+agent[none], none)
		}
	})
}

// TestVirtioConsoleSize: a console on hvc0 has the size of the terminal, from the start and
// when that changes; the guest's shell hears of it.
func TestVirtioConsoleSize(t *testing.T) {
	netKernels(t, 2, func(t *testing.T, kernel, transport string) {
		// read has a bound: of a signal that came right before it a shell hears behind it.
		initrd := moduleInitWith(t, kernel, consoleModules, nil, `
exec </dev/hvc0 >/dev/hvc0 2>&1
for i in $(seq 50); do [ "$(stty size)" = "0 0" ] || break; usleep 100000; done
setsid -c sh -c 'trap "echo CHANGED" WINCH; echo SIZE $(stty size </dev/hvc0); until [ "$line" = end ]; do read -t 1 line && echo NOW $(stty size </dev/hvc0); done'
`)
		p := newTerminal(t)
		p.resize(33, 101)
		ctx, cancel := context.WithTimeout(context.Background(), bootBound)
		t.Cleanup(cancel)
		cmd := exec.CommandContext(ctx, asset(t, nested.AssetVole), "run", "-k", asset(t, kernel), "-i", initrd, "-m", "256M", "-a", "quiet",
			"--boot", "vmlinux", "--console-device", "virtio", "--transport", transport)
		cmd.Env = append(os.Environ(), "VOLE_CACHE="+filepath.Join(t.TempDir(), "cache"))
		p.start(cmd)
		p.expect("SIZE 33 101\r\n")
		for _, size := range []struct{ rows, cols uint16 }{{50, 200}, {24, 80}} {
			p.resize(size.rows, size.cols)
			p.expect("CHANGED\r\n")
			p.typeIn([]byte("\r"))
			p.expect(fmt.Sprintf("NOW %d %d\r\n", size.rows, size.cols))
		}
		p.typeIn([]byte("end\r"))
		p.expect("NOW 24 80\r\n")
		assert.Equal(t, 0, p.wait(), p.out)
	})
}
