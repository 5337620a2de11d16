//! Faults of the network that a pod sees as such: nothing is refused, everything is lost.

use super::Pod;

impl Pod {
    /// Loses every packet that comes in from the other pods, as when the machine is gone; loopback stays.
    pub fn black_hole(&self) {
        self.nft("add table inet hole");
        // Before everything else: -300 is where the raw table stands.
        self.nft("add chain inet hole in { type filter hook prerouting priority -300; }");
        self.nft("add rule inet hole in iifname eth0 meta l4proto tcp drop");
    }

    /// Takes packets in again.
    pub fn heal(&self) {
        self.nft("delete table inet hole");
    }

    fn nft(&self, command: &str) {
        let output = self.output(0, "nft", &[command]);
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "nft \"{command}\" in {}: {words}", self.name);
    }
}
