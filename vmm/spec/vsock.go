package spec

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/vole-vmm/vole/virtio/vsock"
)

// DefaultCID is the guest's context id if none is given. Each machine may have the same.
const DefaultCID = 3

// Vsock is a socket device in plain data: what stands behind --vsock, and in a JSON file.
type Vsock struct {
	// Path is the Unix socket for connections to the guest. The guest's own connections to a port
	// go to the socket Path_PORT.
	Path string `json:"path"`
	// CID is the guest's context id; DefaultCID without it.
	CID Text `json:"cid,omitempty"`
}

var vsockOptions = []option[Vsock]{
	{"cid", "", func(v *Vsock, s string) error { v.CID = Text(s); return nil }},
}

// VsockUsage is the form that ParseVsock reads, for help texts.
const VsockUsage = "PATH[,cid=N]"

// ParseVsock reads a socket device in the form of [VsockUsage]. A comma in the path is written twice.
func ParseVsock(s string) (Vsock, error) {
	words := splitCommas(s)
	v := Vsock{Path: words[0]}
	if v.Path == "" {
		return Vsock{}, fmt.Errorf("%q names no path: want %s", s, VsockUsage)
	}
	if err := parseOptions(s, words[1:], vsockOptions, &v, "a vsock: want "+VsockUsage+" (a comma in the path is written twice)"); err != nil {
		return Vsock{}, err
	}
	return v, nil
}

// maxVsockPath leaves room in a Unix socket's address, of 107 bytes, for "_4294967295".
const maxVsockPath = 96

// GuestCID checks the path and returns the context id.
func (v Vsock) GuestCID() (uint32, error) {
	switch {
	case v.Path == "":
		return 0, errors.New("it names no path")
	case len(v.Path) > maxVsockPath:
		return 0, fmt.Errorf("%s: the path has %d bytes: at most %d leave room for the port behind it", v.Path, len(v.Path), maxVsockPath)
	}
	if v.CID == "" {
		return DefaultCID, nil
	}
	const most = 1<<32 - 2
	n, ok := digits(string(v.CID))
	if !ok || n < DefaultCID || n > most {
		return 0, fmt.Errorf("cid: %q is not a whole number between %d and %d", v.CID, DefaultCID, uint64(most))
	}
	return uint32(n), nil
}

// CheckPath says why the socket can't be made as the host is now, for who makes it later than its device.
func (v Vsock) CheckPath() error { return vsock.CheckPath(v.Path) }

// device makes the device and its socket.
func (v Vsock) device(log *slog.Logger) (*vsock.Device, error) {
	cid, err := v.GuestCID()
	if err != nil {
		return nil, err
	}
	return vsock.New(vsock.Options{CID: cid, Path: v.Path, Logger: log})
}
