package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestBadInputOnThisHost: what is wrong only with this machine as it is now (an interface that is not
// there, a port or a path that is taken) is said as what can't be parsed is: in one line that names it,
// with the exit code for bad input and before anything is started, whether there is a KVM or not.
// Nothing is left behind, and what was there stays.
//
// What takes root has its tests elsewhere: a tap of somebody else's, one in use, one without
// multi_queue and one of a smaller MTU in virtio/net, each with what its error says.
func TestBadInputOnThisHost(t *testing.T) {
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer tcp.Close()
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	require.NoError(t, err)
	defer udp.Close()
	port := func(a net.Addr) string { _, p, _ := net.SplitHostPort(a.String()); return p }
	long := strings.Repeat("p", 120)

	dir := t.TempDir()
	t.Chdir(dir) // a Unix socket's path is short
	require.NoError(t, os.WriteFile("file", []byte("keep"), 0o600))
	require.NoError(t, os.Symlink("nowhere", "link"))
	require.NoError(t, os.Mkdir("directory", 0o700))
	live, err := net.ListenUnix("unix", &net.UnixAddr{Name: "live", Net: "unix"})
	require.NoError(t, err)
	defer live.Close()
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: "stale", Net: "unix"})
	require.NoError(t, err)
	stale.SetUnlinkOnClose(false)
	require.NoError(t, stale.Close())
	before := listing(t, dir)

	kernel, initrd := file(t, "kernel", payload(powerOff())), file(t, "initrd", []byte("x"))
	for name, tc := range map[string]struct {
		args []string
		want []string
	}{
		"no such tap":             {[]string{"--net", "tap=volenone0"}, []string{"--net: tap=volenone0: "}},
		"no such tap, with vhost": {[]string{"--net", "tap=volenone0,vhost"}, []string{"--net: tap=volenone0: "}},
		"not a tap":               {[]string{"--net", "tap=lo"}, []string{"--net: tap=lo: "}},
		"tap's name too long":     {[]string{"--net", "tap=" + long}, []string{"--net: tap=" + long + ": ", "1 to 15 bytes"}},
		"tap's name a path":       {[]string{"--net", "tap=a/b"}, []string{"--net: tap=a/b: ", "no name for an interface"}},
		"the second network":      {[]string{"--net", "user", "--net", "tap=volenone0"}, []string{"--net: tap=volenone0: "}},
		"MAC":                     {[]string{"--net", "user,mac=zz"}, []string{"--net: user: mac: ", `"zz"`}},
		"MAC of a group":          {[]string{"--net", "user,mac=ff:ff:ff:ff:ff:ff"}, []string{"--net: user: mac: ", "multicast"}},
		"MTU too large":           {[]string{"--net", "user,mtu=65536"}, []string{"--net: user: mtu: ", `"65536"`}},
		"MTU too small":           {[]string{"--net", "tap=t,mtu=67"}, []string{"--net: tap=t: mtu: ", `"67"`}},
		"MTU negative":            {[]string{"--net", "user,mtu=-1"}, []string{"--net: user: mtu: ", `"-1"`}},
		"user with a value":       {[]string{"--net", "user=1"}, []string{"--net: ", `"user=1"`}},
		"user's option":           {[]string{"--net", "user,restrict=x"}, []string{"--net: ", "restrict: ", `"x"`}},
		"user's unknown option":   {[]string{"--net", "user,hostfwd=1"}, []string{"--net: ", `"hostfwd=1"`}},
		"user with a tap's":       {[]string{"--net", "user,vhost"}, []string{"--net: user: ", "for a tap"}},

		"TCP port in use":          {[]string{"--net", "user", "--publish", port(tcp.Addr()) + ":80"}, []string{"--publish: ", tcp.Addr().String() + ":80", "in use"}},
		"UDP port in use":          {[]string{"--net", "user", "--publish", port(udp.LocalAddr()) + ":80/udp"}, []string{"--publish: ", udp.LocalAddr().String() + ":80/udp", "in use"}},
		"address of another host":  {[]string{"--net", "user", "--publish", "192.0.2.1:8080:80"}, []string{"--publish: ", "192.0.2.1:8080", "no such address"}},
		"publish nonsense":         {[]string{"--net", "user", "--publish", "http:80"}, []string{"--publish: ", `"http:80"`}},
		"publish beyond the ports": {[]string{"--net", "user", "--publish", "65536:80"}, []string{"--publish: ", `"65536"`}},
		"publish to port 0":        {[]string{"--net", "user", "--publish", "8080:0"}, []string{"--publish: ", `"8080:0"`}},
		"publish, an open bracket": {[]string{"--net", "user", "--publish", "[::1:8080:80"}, []string{"--publish: ", `"[::1"`}},
		"publish into a tap":       {[]string{"--net", "tap=t", "--publish", "8080:80"}, []string{"--publish: ", "--net user"}},

		"vsock on a file":          {[]string{"--vsock", "file"}, []string{"--vsock: ", "file: ", "exists"}},
		"vsock on a live socket":   {[]string{"--vsock", "live"}, []string{"--vsock: ", "live: ", "exists"}},
		"vsock on a stale socket":  {[]string{"--vsock", "stale"}, []string{"--vsock: ", "stale: ", "remove it"}},
		"vsock on a link":          {[]string{"--vsock", "link"}, []string{"--vsock: ", "link: ", "exists"}},
		"vsock on a directory":     {[]string{"--vsock", "directory"}, []string{"--vsock: ", "directory: ", "exists"}},
		"vsock in no directory":    {[]string{"--vsock", "nowhere/v"}, []string{"--vsock: ", "nowhere/v", "no such file or directory"}},
		"vsock in a file":          {[]string{"--vsock", "file/v"}, []string{"--vsock: ", "file/v", "not a directory"}},
		"vsock's path too long":    {[]string{"--vsock", long}, []string{"--vsock: ", long + ": ", "120 bytes"}},
		"vsock without a file":     {[]string{"--vsock", "@v"}, []string{"--vsock: ", `"@v"`}},
		"port on a file":           {[]string{"--port", "a=file"}, []string{"--port: ", " file: ", "exists"}},
		"port on a live socket":    {[]string{"--port", "a=live"}, []string{"--port: ", " live: ", "exists"}},
		"port on a stale socket":   {[]string{"--port", "a=stale"}, []string{"--port: ", " stale: ", "remove it"}},
		"port on a link":           {[]string{"--port", "a=link"}, []string{"--port: ", " link: ", "exists"}},
		"port in no directory":     {[]string{"--port", "a=nowhere/p"}, []string{"--port: ", " nowhere/p: ", "no such file or directory"}},
		"port's path too long":     {[]string{"--port", "a=" + long}, []string{"--port: ", long + ": ", "120 bytes"}},
		"port without a file":      {[]string{"--port", "a=@p"}, []string{"--port: ", " @p: "}},
		"the second port":          {[]string{"--port", "a=new", "--port", "b=file"}, []string{"--port: ", " file: "}},
		"a port behind a vsock":    {[]string{"--vsock", "new", "--port", "b=file"}, []string{"--port: ", " file: "}},
		"one path for both":        {[]string{"--vsock", "new", "--port", "b=new"}, []string{"--port: new is the path of the vsock, too"}},
		"a share behind a port":    {[]string{"--port", "a=new", "--share", "nowhere:t"}, []string{"--share: ", `"nowhere"`, "no such file or directory"}},
		"a disk that is not there": {[]string{"--disk", "nowhere.img"}, []string{"--disk: ", "nowhere.img: does not exist"}},
		"a disk of a wrong size":   {[]string{"--disk", "file"}, []string{"--disk: ", "file: has 4 bytes"}},
		"a share that is a file":   {[]string{"--share", "file:t"}, []string{"--share: ", `"file"`, "not a directory"}},
		"a report and a bad vsock": {[]string{"--report", "report.json", "--vsock", "file"}, []string{"--vsock: ", "exists"}},
	} {
		for command, words := range map[string]struct {
			code            int
			machine, behind []string
		}{
			"run":  {codeUsage, []string{"-k", kernel, "-i", initrd}, nil},
			"exec": {codeExecHost, []string{"-k", kernel}, []string{"--", "true"}},
		} {
			t.Run(name+"/"+command, func(t *testing.T) {
				args := append([]string{command}, words.machine...)
				args = append(append(args, tc.args...), words.behind...)
				r := vole(t, args...)
				assert.Equal(t, words.code, r.code, r.stderr)
				assert.Empty(t, r.stdout)
				assert.True(t, strings.HasPrefix(r.stderr, "vole: "+command+": "), r.stderr)
				assert.Equal(t, 1, strings.Count(r.stderr, "\n"), r.stderr)
				for _, want := range tc.want {
					assert.Contains(t, r.stderr, want)
				}
				assert.Equal(t, before, listing(t, dir))
			})
		}
	}
	kept, err := os.ReadFile("file")
	require.NoError(t, err)
	assert.Equal(t, "keep", string(kept))
}

// listing has the mode and inode of each file in a directory.
func listing(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, e := range entries {
		info, err := os.Lstat(filepath.Join(dir, e.Name()))
		require.NoError(t, err)
		all[e.Name()] = fmt.Sprint(info.Mode(), " ", info.Sys().(*syscall.Stat_t).Ino)
	}
	return all
}
