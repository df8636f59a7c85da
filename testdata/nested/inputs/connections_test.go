package inputs

import (
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/testdata/nested"
)

// TestBadConnections: networks, sockets and ports that can't be had are refused with
// one line, exit code 2 and nothing created.
func TestBadConnections(t *testing.T) {
	kernel := asset(t, nested.KernelDefault)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	require.NoError(t, err)
	taken := file(t, "taken", nil)
	for _, tc := range []struct {
		name string
		args []string
		want []string
	}{
		{"no such tap", []string{"--net", "tap=volenone0"}, []string{"--net: tap=volenone0", "no such interface", "ip tuntap add"}},
		{"no tap", []string{"--net", "tap=lo"}, []string{"--net: tap=lo", "no tap"}},
		{"a name too long", []string{"--net", "tap=" + strings.Repeat("t", 16)}, []string{"--net", "1 to 15 bytes"}},
		{"a port in use", []string{"--net", "user", "--publish", port + ":80"}, []string{"--publish", port, "in use"}},
		{"a socket that exists", []string{"--vsock", taken}, []string{"--vsock", taken, "exists"}},
		{"a socket in no directory", []string{"--vsock", taken + "-dir/v"}, []string{"--vsock", taken + "-dir/v"}},
		{"a socket path too long", []string{"--vsock", "/tmp/" + strings.Repeat("v", 120)}, []string{"--vsock", "125 bytes"}},
		{"a port's socket that exists", []string{"--port", "agent=" + taken}, []string{"--port", taken, "exists"}},
		{"a port's path too long", []string{"--port", "agent=/tmp/" + strings.Repeat("p", 120)}, []string{"--port", "107"}},
		{"the second of two", []string{"--vsock", filepath.Join(filepath.Dir(taken), "v"), "--port", "agent=" + taken}, []string{"--port", taken, "exists"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			refusedCreatingNothing(t, append([]string{"-k", kernel}, tc.args...), tc.want...)
		})
	}
	require.NoFileExists(t, filepath.Join(filepath.Dir(taken), "v"), "what was opened before is gone")
}
