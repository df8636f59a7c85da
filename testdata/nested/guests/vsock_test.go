package guests

import (
	"bufio"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/testdata/nested"
	"github.com/vole-vmm/vole/testdata/nested/stream"
)

// vsockModules are the drivers that a guest may need for its sockets.
var vsockModules = []string{"virtio_pci", "virtio_mmio", "vmw_vsock_virtio_transport"}

// vsockInit is an initramfs with sockets and the peer of package stream.
func vsockInit(t testing.TB, kernel, script string) string {
	t.Helper()
	return moduleInitWith(t, kernel, vsockModules, map[string]string{"/bin/peer": asset(t, nested.AssetPeer)}, script)
}

// dialVsock connects to a port of a guest by the Unix socket, as any program does.
func dialVsock(path string, port int) (net.Conn, *bufio.Reader, error) {
	c, err := net.DialTimeout("unix", path, 5*time.Second)
	if err != nil {
		return nil, nil, err
	}
	if _, err := fmt.Fprintf(c, "CONNECT %d\n", port); err != nil {
		c.Close()
		return nil, nil, err
	}
	r := bufio.NewReader(c)
	line, err := r.ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "OK ") {
		c.Close()
		return nil, nil, fmt.Errorf("CONNECT %d is answered by %q: %w", port, line, err)
	}
	return c, r, nil
}

// buffered is a connection of which a part has been read.
type buffered struct {
	net.Conn
	r *bufio.Reader
}

func (b buffered) Read(p []byte) (int, error) { return b.r.Read(p) }

// reachVsock runs an exchange with a server in the guest, once that is there.
func reachVsock(path string, port int, verb string, bytes int64) <-chan error {
	done := make(chan error, 1)
	go func() {
		done <- retry(func() error {
			c, r, err := dialVsock(path, port)
			if err != nil {
				return err
			}
			defer c.Close()
			return stream.Client(buffered{c, r}, verb, bytes)
		})
	}()
	return done
}

// TestVsock: sockets between host and guest, both ways, with every byte checked.
func TestVsock(t *testing.T) {
	netKernels(t, 0, func(t *testing.T, kernel, transport string) {
		path := filepath.Join(t.TempDir(), "v")
		serveStreams(t, listenUnix(t, path+"_7000"))
		bytes := whole(4<<20, 1<<30)
		initrd := vsockInit(t, kernel, fmt.Sprintf(`
peer send %d vsock:2:7000
peer recv %d vsock:2:7000
peer many %d 1000 vsock:2:7000
peer echo 1000 vsock:2:7999 2>&1 | sed 's/PEER FAILED/CLOSED/'
peer serve 1 vsock:4294967295:7001
`, bytes, bytes, whole(30, 1000)))
		asked := reachVsock(path, 7001, "echo", bytes/8)
		report := filepath.Join(t.TempDir(), "report.json")
		r := voleWithin(t, trafficBound(), "run", "-k", asset(t, kernel), "-i", initrd, "-m", "256M", "-c", "2", "-a", "quiet", "--boot", "vmlinux",
			"--vsock", path, "--transport", transport, "--report", report)
		said := "console: " + r.stdout + "\nstderr: " + r.stderr
		require.Equal(t, 0, r.code, said)
		assert.Contains(t, r.stdout, "CLOSED", said)
		assert.NotContains(t, r.stdout, "FAILED", said)
		assert.Len(t, peerLines(r.stdout), 5, said)
		assert.NoError(t, <-asked, said)
		assert.Empty(t, r.stderr)
		assert.NoFileExists(t, path)
		counts := readReport(t, report).counters("vsock")
		if assert.Len(t, counts, 1) {
			assert.GreaterOrEqual(t, counts[0]["bytes sent"], uint64(bytes))
			assert.GreaterOrEqual(t, counts[0]["bytes received"], uint64(bytes))
			assert.NotZero(t, counts[0]["connections of the guest"])
			assert.NotZero(t, counts[0]["connections to the guest"])
		}
	})
}

func listenUnix(t testing.TB, path string) net.Listener {
	t.Helper()
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	return l
}
