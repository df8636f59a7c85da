package vsock

import "fmt"

// network is what Addr.Network says.
const network = "vsock"

// Addr is one end of a connection: a context id and a port.
type Addr struct {
	CID, Port uint32
}

// Network implements net.Addr.
func (Addr) Network() string { return network }

// String is "CID:port", both decimal.
func (a Addr) String() string { return fmt.Sprintf("%d:%d", a.CID, a.Port) }
