package aclserve.examples;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.api.condition.EnabledIfEnvironmentVariable;

@Timeout(60)
@EnabledIfEnvironmentVariable(
    named = "ACLSERVE_ADDRESS",
    matches = ".+",
    disabledReason = "ACLSERVE_ADDRESS does not name a server")
class DigitsTest {
  @Test
  void recognisesTheDigits() throws Exception {
    Digits.Score score = Digits.recognise(System.getenv("ACLSERVE_ADDRESS"), Digits.folder());
    assertEquals(500, score.count());
    assertTrue(score.right() >= 475, score.right() + " of 500 right, expected at least 475");
  }
}
